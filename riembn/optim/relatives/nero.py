"""Nero: every weight row is centered and of norm one, and its step is as long as its rate says."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .base import RowMethod, center, unit


class Nero(RowMethod):
    r"""Normalized gradient steps on centered unit rows, with one second moment a row (Nero).

    .. math::
        v \leftarrow \beta v + (1-\beta)\|g\|^2, \qquad
        w \leftarrow \mathrm{Norm}\Bigl(\mathrm{Center}\Bigl(w - \eta \frac{g}{\sqrt{v/(1-\beta^t)}}\Bigr)\Bigr)

    Args:
        params: Weight rows: tensors of two or more dimensions, or the param groups of `riembn.Split.groups`; they are
            centered, if asked, and brought to unit norm at construction.
        lr: Learning rate, for small values the angle of a step in radians.
        beta: Decay of the second moment, in [0, 1).
        center: Whether rows have zero mean.

    Without centering and for gradients orthogonal to their rows, a step is Adam-G's without momentum, clipping and
    eps, with Norm(y + h) in the place of the exponential map.

    Source: Liu, Bernstein, Meister and Yue (ICML 2021), arXiv:2102.07227, as released (jxbz/nero), whose scale is 1
    on unit rows.
    """

    def __init__(
        self, params: ParamsT, lr: float | Tensor = 0.01, *, beta: float = 0.999, center: bool = True
    ) -> None:
        super().__init__(params, dict(lr=lr, beta=beta, center=center))

    def prepare(self, w: Tensor, group: dict[str, Any]) -> Tensor:
        if group["center"] and w.shape[1] == 1:
            raise ValueError("Nero: rows of one entry have no centered form; give center=False.")
        return unit(center(w) if group["center"] else w)

    def update(self, w: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        beta, square = group["beta"], g.square().sum(1, keepdim=True)
        t = state["step"] = state.get("step", 0) + 1
        state["exp_avg_sq"] = beta * state.get("exp_avg_sq", torch.zeros_like(square)) + (1 - beta) * square
        rms = (state["exp_avg_sq"] / (1 - beta**t)).sqrt()
        step = torch.where(rms > 0, g / rms, 0.0)  # a row that has never had a gradient stays
        return self.prepare(w - group["lr"] * step, group)
