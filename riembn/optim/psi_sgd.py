"""PSI-SGD: steps measured in units of the weight row itself, whose length is kept but ignored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .reference import SAFE_EXPONENT, SAFE_EXPONENT_FLOAT16
from .rows.arithmetic import Along, largest_entry
from .rows.base import RowOptimizer
from .rows.lists import Batch


class PSISGD(RowOptimizer):
    r"""Stochastic gradient descent on the manifold of positively scale-invariant weights (PSI-SGD).

    For a weight row w of any length and its Euclidean gradient g:

    .. math::
        m \leftarrow \gamma m - \eta \|w\|^2 g, \qquad w \leftarrow w + m

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

    options = ("lr", "momentum")
    _kernel = "psi_sgd"

    def _states(self, group: dict[str, Any], params: list[Tensor]) -> list[list[Tensor]]:
        return [[self._state(p, "momentum_buffer") for p in params]] if group["momentum"] else []

    @staticmethod
    def _one(
        w: Tensor, g: Tensor, m: Tensor | None = None, *, along: Along, lr: float | Tensor, momentum: float
    ) -> None:
        start = w.to(g.dtype)
        scale = _rescue(largest_entry(start, along), w.dtype)
        start = start * scale
        step = -lr * start.square().sum(along, keepdim=True) * (g / scale)
        if m is not None:
            step = m.mul_(momentum * scale).add_(step)
        w.copy_(start + step)

    @staticmethod
    def _lists(batch: Batch, *, lr: float | Tensor, momentum: float) -> None:
        ws, gs = batch.weights, batch.grads
        scale = _rescue(batch.largest(ws), batch.targets[0].dtype)
        torch._foreach_mul_(ws, batch.split(scale))
        rate = batch.norms(ws).square_().mul_(-lr).div_(scale)
        if not batch.states:
            for w, g, r in zip(ws, gs, batch.split(rate), strict=True):
                w.addcmul_(g, r)
            return
        (ms,) = batch.states
        torch._foreach_mul_(ms, batch.split(scale.mul_(momentum)))
        for m, g, r in zip(ms, gs, batch.split(rate), strict=True):
            m.addcmul_(g, r)
        torch._foreach_add_(ws, ms)


def _rescue(largest: Tensor, stored: torch.dtype) -> Tensor:
    """1 where a row's largest entry is in the safe range, else the power of two that brings it to [1/2, 1)."""
    exponent = torch.frexp(largest).exponent
    end = SAFE_EXPONENT_FLOAT16 if stored == torch.float16 else SAFE_EXPONENT
    safe = (exponent > -end) & (exponent <= end)
    limit = 126 if largest.dtype == torch.float32 else 1022
    away = torch.where(safe, 0, -exponent).clamp(-limit, limit)
    return torch.ldexp(torch.ones_like(largest), away)
