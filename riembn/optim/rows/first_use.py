"""The check of a CUDA device at the first use of a kernel: it must do there what lists of tensors do."""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...kernels import cuda
from .loss_scaling import UNSCALED

if TYPE_CHECKING:
    from .base import RowOptimizer

_agreed: set[tuple[type, torch.device]] = set()


def agrees(method: type[RowOptimizer], device: torch.device) -> bool:
    """Whether the kernels of ``method`` do on ``device`` what lists do, to rounding; warns once if not.

    Found out by two steps of a few small weights, the first time; then, and only then, waits for the device. A device
    on which one kernel is wrong is left to lists from then on.
    """
    if device in cuda.refused:
        return False
    if (method, device) not in _agreed:
        if cuda.capturing(device):
            return True  # a first step is refused there by itself
        _agreed.add((method, device))  # for the steps that follow here
        try:
            why = _difference(method, device)
        except Exception as error:  # a compiler or a driver that fails, in ways of its own
            why = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        if why:
            cuda.refused[device] = f"the kernels fail here ({why})"
            warnings.warn(
                f"riembn: on {device} the fused step of {method.__name__} does not do what lists of tensors do "
                f"({why}); lists are used there, which is slower.",
                stacklevel=2,
            )
    return device not in cuda.refused


def _difference(method: type[RowOptimizer], device: torch.device) -> str:
    """How far a step by kernels ends from one by lists; empty if that is rounding."""
    chance = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=chance).to(device)

    # The length of rows, by the kernel that takes them.
    lengths = {tile.kernel: 4 + int(shorter.longest) for shorter, tile in pairwise(cuda.TILES["manifold_step"])}
    wide, longest = (lengths.get(kernel, 64) for kernel in ("_wide", "_long"))
    # Rows side by side, and rows too long for the registers of one program; then two launches that overlap: rows in
    # three blocks, and rows of two strides. A group each, since few rows of one group go together.
    starts = [drawn(5, 64), drawn(2, longest), drawn(2, wide).t(), drawn(3, 4, 3, 3)]
    ends = []
    for foreach in (None, True):
        params = [start.clone() for start in starts]
        groups: list[dict[str, Any]] = [{"params": params[:1]}, {"params": params[1:2]}]
        groups.append({"params": params[2:], "row_dim": 1})
        optimizer = method(groups, lr=0.1, foreach=foreach)  # type: ignore[call-arg]
        chance.manual_seed(1)
        for _ in range(2):
            for p in params:
                p.grad = torch.empty_like(p).copy_(drawn(*p.shape) / torch.linalg.vector_norm(p))
            for group in optimizer.param_groups:  # not by `step`, whose hooks are the caller's
                optimizer._step_rows(group, group["params"], UNSCALED)
        ends.append(params)
    norm = torch.linalg.vector_norm
    apart = float(torch.stack([norm(p - q) / norm(q) for p, q in zip(*ends, strict=True)]).max())
    return "" if apart < 1e-4 else f"weights {apart:.1g} apart"
