"""Muon: the buffer of a layer is made orthogonal; lengths are free, or every row is brought back to norm one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .base import RowMethod, momentum_direction, unit


class Muon(RowMethod):
    r"""Muon on rows of free length: :math:`w \leftarrow (1 - \eta\lambda) w - \eta\sqrt{\max(1, m/n)}\;\mathrm{NS}(u)`.

    u is the layer's buffer with Nesterov's look-ahead, NS makes its singular values about 1, m and n are rows and
    fan-in, and λ is the weight decay, which is not part of u.

    Args:
        params: Weight rows: tensors of two or more dimensions, or the param groups of `riembn.Split.groups`.
        lr: Learning rate, in units of the spectral norm.
        momentum: Share of the buffer that is kept, in [0, 1).
        nesterov: Whether u looks ahead, ``g + γ b``, or is the buffer b.
        steps: Iterations of `newton_schulz`. With 0 the step is a multiple of u, with singular values whose root mean
            square is 1: what is left of Muon without orthogonal steps.
        weight_decay: λ, per unit of the rate.

    `torch.optim.Muon` takes matrices alone, in bfloat16; on a matrix the steps agree to bfloat16's rounding. The
    defaults are its.

    Source: Jordan et al. (2024), KellerJordan/Muon; the decay as in `torch.optim.Muon`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        steps: int = 5,
        weight_decay: float = 0.1,
    ) -> None:
        defaults = dict(lr=lr, momentum=momentum, nesterov=nesterov, steps=steps, weight_decay=weight_decay)
        super().__init__(params, defaults)

    def update(self, w: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        return (1 - group["lr"] * group["weight_decay"]) * w - _orthogonal_step(w, g, state, group)


class MuonRows(RowMethod):
    r"""Muon with forced row norms: :math:`w \leftarrow \mathrm{Norm}(w - \eta\sqrt{\max(1, m/n)}\;\mathrm{NS}(u))`.

    The step is that of `Muon`, without decay.

    Args:
        params: Weight rows: tensors of two or more dimensions, or the param groups of `riembn.Split.groups`; they are
            brought to unit norm at construction.
        lr: Learning rate, in units of the spectral norm.
        momentum: Share of the buffer that is kept, in [0, 1).
        nesterov: Whether u looks ahead, ``g + γ b``, or is the buffer b.
        steps: As for `Muon`.

    Source: Jordan et al. (2024), KellerJordan/Muon; norms forced before the step as in airbench94_muon of
    KellerJordan/cifar10-airbench, whose values these are. There one norm a layer, :math:`\sqrt m`; here one a row.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.24,
        *,
        momentum: float = 0.6,
        nesterov: bool = True,
        steps: int = 3,
    ) -> None:
        super().__init__(params, dict(lr=lr, momentum=momentum, nesterov=nesterov, steps=steps))

    def prepare(self, w: Tensor, group: dict[str, Any]) -> Tensor:
        return unit(w)

    def update(self, w: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        return unit(w - _orthogonal_step(w, g, state, group))


def _orthogonal_step(w: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """What a step takes away from the rows; the buffer is updated."""
    u = momentum_direction(state, g, group["momentum"], nesterov=group["nesterov"])
    rate = group["lr"] * max(1.0, w.shape[0] / w.shape[1]) ** 0.5
    if not group["steps"]:  # u over its Frobenius norm; an orthogonal matrix has the root of its rank
        rate *= min(w.shape) ** 0.5
    return rate * newton_schulz(u, group["steps"])


def newton_schulz(x: Tensor, steps: int = 5) -> Tensor:
    r"""The matrix with the singular vectors of ``x`` and singular values near 1, by matrix products alone.

    .. math:: X \leftarrow a X + (b A + c A^2) X, \quad A = X X^\top, \quad (a, b, c) = (3.4445, -4.7750, 2.0315)

    Args:
        x: A matrix; divided by its Frobenius norm first.
        steps: Iterations. They do not converge: singular values end between about 0.7 and 1.2 once they are there.

    Source: Jordan et al. (2024), KellerJordan/Muon.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = x if x.shape[0] <= x.shape[1] else x.T
    y = wide / torch.linalg.vector_norm(wide).clamp_min(1e-7)
    for _ in range(steps):
        gram = y @ y.T
        y = a * y + (b * gram + c * gram @ gram) @ y
    return y if wide is x else y.T
