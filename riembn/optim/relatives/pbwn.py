"""PBWN: ordinary SGD, and every few steps each row is divided by its norm."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from .base import RowMethod, momentum_direction, unit


class PBWN(RowMethod):
    r"""SGD with projection-based weight normalization: :math:`w \leftarrow \mathrm{Norm}(w - \eta u)`.

    Args:
        params: Weight rows: tensors of two or more dimensions, or the param groups of `riembn.Split.groups`; they are
            brought to unit norm at construction.
        lr: Learning rate.
        momentum: Share of the buffer that is kept, in [0, 1).
        nesterov: Whether u looks ahead, ``g + γ b``, or is the buffer b.
        every: After how many steps rows are brought back to unit norm.
        tangent: Whether the gradient is made orthogonal to its row first ("NP-Riem" in the release); nothing
            changes where the loss is scale-invariant.

    Without momentum and for gradients orthogonal to their rows, one step with ``every=1`` has the direction of a step
    of PSI-SGD, and of one of SGD-G up to the cube of its angle. Weight rescaling (WRS; Liu et al. 2021,
    arXiv:2102.03497) is the same idea with intervals. The source's weight decay is left out.

    Source: Huang et al. (2017), arXiv:1710.02338, as released (huangleiBuaa/NormProjection).
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.1,
        *,
        momentum: float = 0.9,
        nesterov: bool = True,
        every: int = 1,
        tangent: bool = False,
    ) -> None:
        defaults = dict(lr=lr, momentum=momentum, nesterov=nesterov, every=every, tangent=tangent)
        super().__init__(params, defaults)

    def prepare(self, w: Tensor, group: dict[str, Any]) -> Tensor:
        return unit(w)

    def update(self, w: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        if group["tangent"]:
            y = unit(w)
            g = g - y * (y * g).sum(1, keepdim=True)
        new = w - group["lr"] * momentum_direction(state, g, group["momentum"], nesterov=group["nesterov"])
        t = state["step"] = state.get("step", 0) + 1
        return unit(new) if t % group["every"] == 0 else new
