"""Hyperball: the base optimizer gives a direction, and the step has one length whatever that direction's length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .base import RowMethod, adam_direction, momentum_direction, unit


def hyperball(w: Tensor, u: Tensor, lr: Any) -> Tensor:
    """The Hyperball step along ``u``; rows keep their norms."""
    return torch.linalg.vector_norm(w, dim=1, keepdim=True) * unit(unit(w) - lr * unit(u))


class HyperballSGD(RowMethod):
    r"""SGD with momentum on a sphere of the row's own radius, with steps of one length (SGD-H).

    .. math:: w \leftarrow R \, \mathrm{Norm}(w - \eta R \, \mathrm{Norm}(u)), \qquad R = \|w\|

    u is the momentum buffer. For a tangent u a row turns by :math:`\arctan \eta`; for u at the angle
    :math:`\varphi` to w by :math:`\operatorname{atan2}(\eta \sin\varphi, 1 - \eta\cos\varphi)`.

    Args:
        params: Weight rows: tensors of two or more dimensions, or the param groups of `riembn.Split.groups`.
        lr: η, the length of a step relative to the row; for small η the angle in radians.
        momentum: Share of the buffer that is kept, in [0, 1).

    Source: Wen et al. (2026), arXiv:2606.16899. The paper wraps Adam and Muon, one Frobenius norm a matrix. The row
    form, momentum as the base, and both values are this project's.
    """

    def __init__(self, params: ParamsT, lr: float | Tensor = 0.02, *, momentum: float = 0.9) -> None:
        super().__init__(params, dict(lr=lr, momentum=momentum))

    def update(self, w: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        return hyperball(w, momentum_direction(state, g, group["momentum"]), group["lr"])


class AdamH(RowMethod):
    r"""Adam on a sphere of the row's own radius, with steps of one length.

    As `HyperballSGD`, with Adam's direction :math:`u = \hat m / (\sqrt{\hat v} + \epsilon)`.

    Args:
        params: As for `HyperballSGD`.
        lr: As for `HyperballSGD`.
        betas: Decay of the moments, each in [0, 1).
        eps: Added to the root of the second moment.

    Source: Wen et al. (2026), arXiv:2606.16899, row by row instead of matrix by matrix; values of its first author's
    run in KellerJordan/modded-nanogpt, pull request 272.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.018,
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps))

    def update(self, w: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        return hyperball(w, adam_direction(state, g, group["betas"], group["eps"]), group["lr"])
