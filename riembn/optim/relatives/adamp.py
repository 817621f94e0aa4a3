"""SGDP and AdamP: the part of a step that would only lengthen a row is taken out, where rows look scale-invariant."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from .base import RowMethod, adam_direction, momentum_direction, unit


class _Projecting(RowMethod):
    def project(self, w: Tensor, g: Tensor, u: Tensor, group: dict[str, Any]) -> tuple[Tensor, float]:
        """``u`` without its part along ``w`` where the gradient is orthogonal to ``w``, and the share of decay left."""
        for shape in (w.shape, (1, -1)):  # row by row, else the tensor as one vector
            y, direction = unit(w.reshape(shape)), unit(g.reshape(shape))
            cosine = (y * direction).sum(1).abs().max()
            if cosine < group["delta"] / math.sqrt(y.shape[1]):
                tangent = u.reshape(shape) - y * (y * u.reshape(shape)).sum(1, keepdim=True)
                return tangent.reshape(w.shape), group["wd_ratio"]
        return u, 1.0


class SGDP(_Projecting):
    r"""SGD with momentum and decoupled weight decay, without the radial part of its step (SGDP).

    .. math:: w \leftarrow \Bigl(1 - \frac{\eta \lambda r}{1 - \gamma}\Bigr) w - \eta \, \Pi(u)

    :math:`\Pi` takes out the part of u along each row and r is ``wd_ratio`` if no row's gradient has a cosine with its
    row of :math:`\delta / \sqrt{\text{fan-in}}` or more; if one has, the same is tried with the tensor as one vector,
    and then :math:`\Pi` does nothing and r = 1.

    Args:
        params: Weight rows: tensors of two or more dimensions, or the param groups of `riembn.Split.groups`.
        lr: Learning rate.
        momentum: γ, in [0, 1).
        weight_decay: λ.
        nesterov: Whether u looks ahead, ``g + γ b``, or is the buffer b.
        delta: δ, how orthogonal gradients have to be; 0 never projects.
        wd_ratio: r, the share of decay where rows are projected, in [0, 1].

    The buffer is never projected. The release projects it, too, when ``nesterov`` is off, since it works in place.

    Source: Heo et al. (ICLR 2021), arXiv:2006.08217, as released (clovaai/AdamP), with its defaults.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
    ) -> None:
        shared = dict(weight_decay=weight_decay, nesterov=nesterov, delta=delta, wd_ratio=wd_ratio)
        super().__init__(params, dict(lr=lr, momentum=momentum, **shared))

    def update(self, w: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        lr, momentum = group["lr"], group["momentum"]
        u = momentum_direction(state, g, momentum, nesterov=group["nesterov"])
        u, ratio = self.project(w, g, u, group)
        return w * (1 - lr * group["weight_decay"] * ratio / (1 - momentum)) - lr * u


class AdamP(_Projecting):
    r"""AdamW without the radial part of its step (AdamP).

    .. math:: w \leftarrow (1 - \eta \lambda r)\, w - \eta \, \Pi\bigl(\hat m / (\sqrt{\hat v} + \epsilon)\bigr)

    :math:`\Pi` and r are those of `SGDP`.

    Args:
        params, delta, wd_ratio: As for `SGDP`.
        lr: Learning rate.
        betas: Decay of the moments, each in [0, 1).
        eps: Added to the root of the second moment.
        weight_decay: λ.
        nesterov: Whether the first moment looks ahead.

    Source: as for `SGDP`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
    ) -> None:
        shared = dict(weight_decay=weight_decay, nesterov=nesterov, delta=delta, wd_ratio=wd_ratio)
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, **shared))

    def update(self, w: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        lr = group["lr"]
        u = adam_direction(state, g, group["betas"], group["eps"], nesterov=group["nesterov"])
        u, ratio = self.project(w, g, u, group)
        return w * (1 - lr * group["weight_decay"] * ratio) - lr * u
