"""What if we keep the length but ignore it? PSI-SGD: steps measured in units of the weight vector itself."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from ..geometry import Layout
from ..kernels import cpu
from .reference import SAFE_EXPONENT, SAFE_EXPONENT_FLOAT16
from .rows.arithmetic import RowScalars, compute_dtype, fused_batches, largest_entry
from .rows.base import RowOptimizer, check_range, chosen_path
from .rows.lists import batches, store
from .rows.loss_scaling import UNSCALED, LossScaling
from .rows.sharded import on_local_rows

__all__ = ["PSISGD"]


class PSISGD(RowOptimizer):
    r"""Stochastic gradient descent on the manifold of positively scale-invariant weights (PSI-SGD).

    For a weight vector w of any length and its Euclidean gradient g:

    .. math::
        m \leftarrow \mu m - \eta \|w\|^2 g, \qquad w \leftarrow w + m

    If the loss does not change with the length of w, then starting from c w, c > 0, gives c times the same
    trajectory: what is learned does not depend on the scale of the start. Without momentum the direction turns
    by ``arctan(lr |g|)``, g taken at unit length, and the length can only grow.

    Args:
        params: As for `SGDG`; rows keep their scale.
        lr: Learning rate, in radians per unit slope (loss per radian); it has no scale of the weights in it.
        momentum: Share of the last step that is kept, in [0, 1).
        foreach: As for `SGDG`.
        fused: As for `SGDG`.
        maximize: As for `SGDG`.

    Raises:
        ValueError: For a hyper-parameter out of range, a parameter of fewer than two dimensions, a row that
            is zero or not finite. Nothing is changed then.

    The length grows exponentially in the number of steps. A row whose largest entry leaves
    :math:`[2^{-24}, 2^{24})`, or :math:`[2^{-8}, 2^8)` in float16, is therefore multiplied by a power of two, its
    momentum with it, which rounds nothing and stays on the same point of the manifold. Weight decay would only
    change the length; there is none. Only weights that really are scale-invariant belong here (`riembn.split`).
    State: ``momentum_buffer`` in the parameter's shape, none with ``momentum=0``.

    Source: Yi (2022), PMLR 180:1128-1137, Equation 10; with momentum Equation 11 and Algorithm 1, whose last line is
    misprinted. The paper, too, neither projects nor transports the momentum. The powers of two are ours: the paper
    normalizes a row whose norm exceeds 10,000.
    """

    unit_rows = False

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        *,
        momentum: float = 0.0,
        foreach: bool | None = None,
        fused: bool | None = None,
        maximize: bool = False,
    ) -> None:
        defaults = dict(lr=lr, momentum=momentum, foreach=foreach, fused=fused, maximize=maximize)
        super().__init__(params, defaults)

    def _check_options(self, group: dict[str, Any]) -> None:
        super()._check_options(group)
        check_range("PSISGD", "momentum", group["momentum"], 0, 1, open_high=True)

    def _step_group(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], scaling: LossScaling
    ) -> None:
        momentum = group["momentum"]
        psi_sgd(
            params,
            grads,
            [self._state(p, "momentum_buffer") for p in params] if momentum else None,
            layout=Layout.of(group),
            foreach=group["foreach"],
            fused=group["fused"],
            scaling=scaling,
            lr=group["lr"],
            momentum=momentum,
        )


@on_local_rows
def psi_sgd(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor] | None,
    *,
    layout: Layout,
    foreach: bool | None = None,
    fused: bool | None = None,
    scaling: LossScaling = UNSCALED,
    lr: float | Tensor,
    momentum: float,
) -> None:
    """One step of PSI-SGD on lists of weights, gradients and momentum buffers, in place; see `PSISGD`."""
    paths: tuple[Any, Any, Any] = (
        _single_tensor_psi_sgd,
        _multi_tensor_psi_sgd,
        partial(_fused_psi_sgd, scaling=scaling),
    )
    chosen_path(paths, foreach, fused)(params, grads, momentum_buffers, layout, lr, momentum)


def _single_tensor_psi_sgd(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor] | None,
    layout: Layout,
    lr: float | Tensor,
    momentum: float,
) -> None:
    for i, (p, grad) in enumerate(zip(params, grads, strict=True)):
        weight, along = layout.view(p)
        dtype = compute_dtype(p.dtype)
        w = weight.to(dtype)
        scale = _rescue(largest_entry(w, along), p.dtype)
        w = w * scale
        g = layout.view(grad)[0].to(dtype) / scale
        step = -lr * w.square().sum(along, keepdim=True) * g
        if momentum_buffers is not None:
            m, _ = layout.view(momentum_buffers[i])
            step = m.mul_(momentum * scale).add_(step)
        weight.copy_(w + step)


def _multi_tensor_psi_sgd(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor] | None,
    layout: Layout,
    lr: float | Tensor,
    momentum: float,
) -> None:
    states = [] if momentum_buffers is None else [momentum_buffers]
    for batch in batches(params, grads, states, layout):
        ws, gs = batch.weights, batch.grads
        rows = RowScalars(ws, batch.along)
        scale = _rescue(rows.largest(ws), batch.targets[0].dtype)
        torch._foreach_mul_(ws, rows.split(scale))
        rate = rows.norms(ws).square_().mul_(-lr).div_(scale)
        if not batch.states:
            for w, g, r in zip(ws, gs, rows.split(rate), strict=True):
                w.addcmul_(g, r)
        else:
            (ms,) = batch.states
            torch._foreach_mul_(ms, rows.split(scale.mul_(momentum)))
            for m, g, r in zip(ms, gs, rows.split(rate), strict=True):
                m.addcmul_(g, r)
            torch._foreach_add_(ws, ms)
        store(batch)


def _fused_psi_sgd(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor] | None,
    layout: Layout,
    lr: float | Tensor,
    momentum: float,
    scaling: LossScaling,
) -> None:
    states = [] if momentum_buffers is None else [momentum_buffers]
    taken, left = fused_batches(params, grads, states, layout)
    for kernels, (ps, gs, *ms) in taken:
        if kernels is cpu:
            cpu.psi_sgd(ps, gs, ms[0] if ms else None, layout, float(lr), momentum)
        else:
            kernels.psi_sgd(ps, gs, ms[0] if ms else None, layout, lr, momentum, *scaling)
    if left[0]:
        _multi_tensor_psi_sgd(left[0], left[1], left[2] if states else None, layout, lr, momentum)


def _rescue(largest: Tensor, stored: torch.dtype) -> Tensor:
    """1 where a row's largest entry is in the safe range, else the power of two that brings it to [1/2, 1)."""
    exponent = torch.frexp(largest).exponent
    end = SAFE_EXPONENT_FLOAT16 if stored == torch.float16 else SAFE_EXPONENT
    safe = (exponent > -end) & (exponent <= end)
    limit = 126 if largest.dtype == torch.float32 else 1022
    away = torch.where(safe, 0, -exponent).clamp(-limit, limit)
    return torch.ldexp(torch.ones_like(largest), away)
