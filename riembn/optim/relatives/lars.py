"""LARS: the gradient is rescaled to a fixed share of the weight's length before it enters the buffer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .base import RowMethod, momentum_direction


class LARS(RowMethod):
    r"""SGD with momentum and layer-wise adaptive rate scaling.

    .. math::
        b \leftarrow \gamma b + c \, \frac{\|w\|}{\|g + \lambda w\|}\,(g + \lambda w), \qquad w \leftarrow w - \eta b

    Norms are the layer's. By row, without momentum and decay, each row turns by :math:`\arctan(\eta c)` at every step
    if its gradient is orthogonal to it.

    Args:
        params: Weight rows: tensors of two or more dimensions, or the param groups of `riembn.Split.groups`.
        lr: η.
        momentum: γ, in [0, 1).
        weight_decay: λ of a decay within the gradient.
        trust: c, the length of a step with η = 1, relative to the weight.
        by_row: Whether each row has norms of its own.

    Source: You, Gitman and Ginsburg (2017), arXiv:1708.03888, in the form and with the trust coefficient of
    facebookresearch/moco-v3; the rate is the caller's.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
        by_row: bool = False,
    ) -> None:
        defaults = dict(lr=lr, momentum=momentum, weight_decay=weight_decay, trust=trust, by_row=by_row)
        super().__init__(params, defaults)

    def update(self, w: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        g = g + group["weight_decay"] * w
        along = 1 if group["by_row"] else (0, 1)
        length, size = (torch.linalg.vector_norm(x, dim=along, keepdim=True) for x in (w, g))
        # As the source has it: where either length is zero, the gradient keeps its own.
        scale = torch.where((length > 0) & (size > 0), group["trust"] * length / size, 1.0)
        return w - group["lr"] * momentum_direction(state, scale * g, group["momentum"])
