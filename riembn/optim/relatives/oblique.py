"""Oblique SGD and Adam: an ordinary buffer, made tangent where it is used, and a step back to the unit sphere."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from .base import RowMethod, adam_direction, momentum_direction, unit


class _Oblique(RowMethod):
    def prepare(self, w: Tensor, group: dict[str, Any]) -> Tensor:
        return unit(w)

    def retract(self, w: Tensor, u: Tensor, lr: Any) -> Tensor:
        return unit(w - lr * (u - w * (w * u).sum(1, keepdim=True)))


class ObliqueSGD(_Oblique):
    r"""SGD with momentum on unit rows: the buffer is projected on the tangent space, and the step retracted.

    .. math:: b \leftarrow \gamma b + g, \qquad w \leftarrow \mathrm{Norm}(w - \eta\,(b - w \langle w, b\rangle))

    The buffer itself stays as it is. A part of it that points along the last motion, by the angle θ, is shorter by
    the factor :math:`\cos\theta` after the projection; parallel transport (`SGDG`) would keep its length.

    Args:
        params: Weight rows: tensors of two or more dimensions, or the param groups of `riembn.Split.groups`; they are
            brought to unit norm at construction.
        lr: Learning rate, in radians per unit slope (loss per radian).
        momentum: γ, in [0, 1).

    Source: NVIDIA-NeMo/Emerging-Optimizers, ObliqueSGD (2025), with its defaults; unit rows are points of the oblique
    manifold, see Absil, Mahony and Sepulchre (2008). Its first version did not keep the buffer; this is the later one.
    """

    def __init__(self, params: ParamsT, lr: float | Tensor = 1e-3, *, momentum: float = 0.9) -> None:
        super().__init__(params, dict(lr=lr, momentum=momentum))

    def update(self, w: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        return self.retract(w, momentum_direction(state, g, group["momentum"]), group["lr"])


class ObliqueAdam(_Oblique):
    r"""Adam on unit rows: its direction is projected on the tangent space, and the step retracted.

    .. math:: w \leftarrow \mathrm{Norm}(w - \eta\,(u - w \langle w, u\rangle)), \qquad
              u = \hat m / (\sqrt{\hat v} + \epsilon)

    The second moment is one an entry, so that a step depends on the basis, as Adam's does and Adam-G's does not.

    Args:
        params: As for `ObliqueSGD`.
        lr: Learning rate; with entries of u near 1, a step is about ``lr * sqrt(fan_in)`` radians.
        betas: Decay of the moments, each in [0, 1).
        eps: Added to the root of the second moment.

    Source: NVIDIA-NeMo/Emerging-Optimizers, ObliqueAdam (2025), with its defaults and Adam's bias correction, which its
    pull request 299 puts in the place of one outside the root.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps))

    def update(self, w: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        return self.retract(w, adam_direction(state, g, group["betas"], group["eps"]), group["lr"])
