"""Rotational variants: rows turn from the first step by the angle that weight decay would bring about in the end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .base import RowMethod, adam_direction, center, momentum_direction, unit


class _Rotational(RowMethod):
    """What both variants share: an update of known average length, tangent and, if asked, centered."""

    def prepare(self, w: Tensor, group: dict[str, Any]) -> Tensor:
        if not group["center"]:
            return w
        if w.shape[1] == 1:
            raise ValueError(f"{type(self).__name__}: rows of one entry have no centered form; give center=False.")
        return torch.linalg.vector_norm(w, dim=1, keepdim=True) * unit(center(w))

    def rotate(self, w: Tensor, u: Tensor, angle: Any, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """Turn the rows against ``u`` by ``angle`` on average."""
        y, rho = unit(w), group["decay_of_norm"]
        d = center(u) if group["center"] else u
        d = d - y * (y * d).sum(1, keepdim=True)
        t = state["turns"] = state.get("turns", 0) + 1
        square = d.square().sum(1, keepdim=True)
        state["norm_sq"] = rho * state.get("norm_sq", torch.zeros_like(square)) + (1 - rho) * square
        average = (state["norm_sq"] / (1 - rho**t)).sqrt()
        return torch.linalg.vector_norm(w, dim=1, keepdim=True) * unit(y - angle * d / (average + 1e-8))


class RotationalSGD(_Rotational):
    r"""SGD with momentum whose rows turn by the equilibrium angle of learning rate and weight decay.

    .. math::
        d \leftarrow u - w \frac{\langle u, w\rangle}{\|w\|^2}, \quad
        s \leftarrow \rho s + (1 - \rho) \|d\|^2, \quad
        w \leftarrow \|w\| \, \mathrm{Norm}\Bigl(w - \eta_r \|w\| \frac{d}{\sqrt{s / (1 - \rho^t)} + 10^{-8}}\Bigr)

    with the momentum buffer u and :math:`\eta_r = \sqrt{2\eta\lambda/(1+\gamma)}` radians. Rows keep their norms; at
    the first step a row turns by :math:`\arctan \eta_r`, as with `HyperballSGD`.

    Args:
        params: Weight rows: tensors of two or more dimensions, or the param groups of `riembn.Split.groups`.
        lr: η of the SGD that is imitated.
        momentum: γ, in [0, 1).
        weight_decay: λ of the SGD that is imitated; with the rate it sets the angle, and nothing decays.
        center: Whether rows and their updates have zero mean.
        decay_of_norm: ρ, the share of the average squared update that is kept, in [0, 1).

    Source: Kosson, Messmer and Jaggi (ICML 2024), arXiv:2305.17212, as released (epfml/REQ). The release has no default
    for rate and decay; those here are the book's baseline.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.1,
        *,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        center: bool = True,
        decay_of_norm: float = 0.9,
    ) -> None:
        shared = dict(weight_decay=weight_decay, center=center, decay_of_norm=decay_of_norm)
        super().__init__(params, dict(lr=lr, momentum=momentum, **shared))

    def update(self, w: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        angle = (2 * group["lr"] * group["weight_decay"] / (1 + group["momentum"])) ** 0.5
        return self.rotate(w, momentum_direction(state, g, group["momentum"]), angle, state, group)


class RotationalAdamW(_Rotational):
    r"""AdamW whose rows turn by the equilibrium angle of learning rate and weight decay.

    As `RotationalSGD`, with Adam's direction :math:`u = \hat m/(\sqrt{\hat v} + \epsilon)` and the angle
    :math:`\eta_r = \sqrt{2\eta\lambda(1-\beta_1)/(1+\beta_1)}`.

    Args:
        params, center, decay_of_norm: As for `RotationalSGD`.
        lr, weight_decay: η and λ of the AdamW that is imitated.
        betas: Decay of the moments, each in [0, 1).
        eps: Added to the root of the second moment.

    Source: as for `RotationalSGD`; the values are the release's.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        center: bool = True,
        decay_of_norm: float = 0.9,
    ) -> None:
        shared = dict(weight_decay=weight_decay, center=center, decay_of_norm=decay_of_norm)
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, **shared))

    def update(self, w: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        beta1 = group["betas"][0]
        angle = (2 * group["lr"] * group["weight_decay"] * (1 - beta1) / (1 + beta1)) ** 0.5
        return self.rotate(w, adam_direction(state, g, group["betas"], group["eps"]), angle, state, group)
