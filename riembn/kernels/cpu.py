"""The fused step on a CPU: one pass over weight, gradient and momentum, for rows that lie contiguous in memory."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..geometry import Layout
from .c_library import library

TAKEN = "float32 or float64 on a CPU, rows contiguous along dimension 0, and a C compiler on the machine"
_SUFFIX = {torch.float32: "float", torch.float64: "double"}


def takes(p: Tensor, layout: Layout) -> bool:
    """Whether the fused step can work on ``p``: float32 or float64 on a CPU, its rows one after the other."""
    return (
        p.is_cpu
        and p.dtype in _SUFFIX
        and type(p) in (Tensor, torch.nn.Parameter)  # a subclass (DTensor) may keep its data elsewhere
        and not p.is_neg()  # a view of the negative, which only torch knows
        and _rows(p.shape, p.stride(), layout) is not None
        and library() is not None
    )


def sgd_g(
    columns: Sequence[Sequence[Tensor]],
    layout: Layout,
    lr: float | Tensor,
    momentum: float,
    grad_clip: float | None,
    *_: Tensor | None,
) -> None:
    """One step of SGD-G in place; ``columns``: weights, gradients, momentum.

    All are of one type, and `takes` is true of every weight. What a gradient scaler leaves to a step (the last
    arguments) it leaves on a CUDA device only.
    """
    with _Tables(columns, layout) as t:
        scalars = map(ctypes.c_double, (float(lr), momentum, _bound(grad_clip)))
        _call("sgd_g", columns[0], *t.sizes, *t.addresses, t.longest, _threads(), *scalars)


def adam_g(
    columns: Sequence[Sequence[Tensor]],
    layout: Layout,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    grad_clip: float | None,
    *_: Tensor | None,
) -> None:
    """One step of Adam-G in place; ``columns``: weights, gradients, both moments, step counts; else as `sgd_g`.

    A count is one of each weight, this step included.
    """
    *moved, steps = columns
    rates = [float(lr * bias_correction(betas, int(t))) for t in steps]
    with _Tables(moved, layout) as t:
        corrected = (ctypes.c_double * len(rates))(*rates)
        scalars = map(ctypes.c_double, (*betas, eps, _bound(grad_clip)))
        _call("adam_g", columns[0], *t.sizes, *t.addresses, corrected, t.longest, _threads(), *scalars)


def psi_sgd(
    columns: Sequence[Sequence[Tensor]], layout: Layout, lr: float | Tensor, momentum: float, *_: Tensor | None
) -> None:
    """One step of PSI-SGD in place; as `sgd_g`, but without momentum there is no column of it."""
    with _Tables(columns, layout) as t:
        scalars = map(ctypes.c_double, (float(lr), momentum))
        _call("psi_sgd", columns[0], *t.sizes, *t.addresses, _threads(), *scalars)


def bias_correction(betas: tuple[float, float], t: int) -> float:
    """What Adam-G's rate is multiplied by at step ``t``, from 1, since its moments start at zero."""
    return math.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t)


class _Tables:
    """Sizes and addresses as C arrays; what lies in another order than its weight is copied, and state copied back."""

    def __init__(self, columns: Sequence[Sequence[Tensor]], layout: Layout) -> None:
        params, grads, *states = columns
        found = [_rows(p.shape, p.stride(), layout) for p in params]
        rows, fan_in = zip(*(size for size in found if size is not None), strict=True)
        integers = ctypes.c_int64 * len(params)
        self.sizes = ctypes.c_int64(len(params)), integers(*rows), integers(*fan_in)
        self.longest = ctypes.c_int64(max(fan_in))
        # alive until the call is over
        self._grads = [_like(g, p) for g, p in zip(grads, params, strict=True)]
        used = [[_like(m, p) for m, p in zip(column, params, strict=True)] for column in states[:1]]
        used += [[v.contiguous() for v in column] for column in states[1:]]  # one value a row
        self._params, self._own, self._used = params, [*chain(*states)], [*chain(*used)]
        missing: list[Sequence[Tensor | None]] = [[None] * len(params)]
        self.addresses = [_addresses(column) for column in (params, self._grads, *(used or missing))]

    def __enter__(self) -> _Tables:
        return self

    def __exit__(self, *_: object) -> None:
        for own, used in zip(self._own, self._used, strict=True):
            if own is not used:
                own.copy_(used)
        increment_version([*self._params, *self._own])  # autograd does not see what the library writes


def _like(t: Tensor, p: Tensor) -> Tensor:
    """``t`` in the type and the memory order of ``p``: itself where it is so already."""
    same = t.stride() == p.stride() and t.dtype == p.dtype and not t.is_neg()
    return t if same else torch.empty_like(p).copy_(t)


def _addresses(tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*[None if t is None else t.data_ptr() for t in tensors])


def _call(name: str, params: Sequence[Tensor], *arguments: Any) -> None:
    if getattr(library(), f"{name}_{_SUFFIX[params[0].dtype]}")(*arguments):
        raise MemoryError("riembn: no memory for the fused optimizer step to work in; nothing has moved.")


def _threads() -> ctypes.c_int:
    return ctypes.c_int(torch.get_num_threads())


def _bound(grad_clip: float | None) -> float:
    return math.inf if grad_clip is None else grad_clip


@functools.lru_cache(maxsize=4096)
def _rows(shape: torch.Size, stride: tuple[int, ...], layout: Layout) -> tuple[int, int] | None:
    """Rows and fan-in of a weight whose rows lie one after the other; None if they do not.

    Kept for each shape: at every step and for every weight, working it out costs as much as a small weight's step.
    """
    if layout.row_dim != 0 and layout.channels_per_row is not None:
        return None
    expected = 1
    for size, step in sorted(zip(shape[1:], stride[1:], strict=True), key=lambda d: (d[1], d[0])):
        if size != 1:
            if step != expected:
                return None
            expected *= size
    if shape[0] > 1 and stride[0] != expected:
        return None
    weight = torch.empty(shape, device="meta")
    rows = layout.row_count(weight)
    return rows, weight.numel() // max(rows, 1)
