"""Radial brake: a row may grow, but only by a share of what its step would have added."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .base import RowMethod, momentum_direction, unit


class RadialBrakeSGD(RowMethod):
    r"""SGD with momentum whose rows keep their direction after the step, and only a share of their change in length.

    .. math::
        z = w - \eta u, \qquad
        w \leftarrow \bigl(\|w\| + s\,(\|z\| - \|w\|)\bigr)\, \mathrm{Norm}(z)

    with s = ``outward`` if the row has grown and ``inward`` if it has shrunk. With both 1 this is SGD, with both 0
    SGD followed by a projection on the sphere of radius \|w\|.

    Args:
        params: Weight rows: tensors of two or more dimensions, or the param groups of `riembn.Split.groups`.
        lr: Learning rate.
        momentum: Share of the buffer that is kept, in [0, 1).
        outward: Share of growth that is kept, in [0, 1].
        inward: Share of shrinking that is kept, in [0, 1].

    Source: RadialBrakeHook of NVIDIA-NeMo/Emerging-Optimizers (2026), row by row instead of matrix by matrix; both
    shares are its defaults, rate and momentum the book's baseline.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.1,
        *,
        momentum: float = 0.9,
        outward: float = 0.5,
        inward: float = 1.0,
    ) -> None:
        super().__init__(params, dict(lr=lr, momentum=momentum, outward=outward, inward=inward))

    def update(self, w: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        z = w - group["lr"] * momentum_direction(state, g, group["momentum"])
        before, after = (torch.linalg.vector_norm(x, dim=1, keepdim=True) for x in (w, z))
        change = after - before
        return (before + torch.where(change > 0, group["outward"] * change, group["inward"] * change)) * unit(z)
