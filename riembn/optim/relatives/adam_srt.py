"""AdamSRT: Adam with one second moment a row, and moments that follow the row to its new length and direction."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .base import RowMethod


class AdamSRT(RowMethod):
    r"""Adam by rows (S), its moments rescaled (R) and transported (T) after each step.

    .. math::
        m \leftarrow \beta_1 m + (1-\beta_1) g, \quad v \leftarrow \beta_2 v + (1-\beta_2)\|g\|^2, \quad
        w^+ = w - \eta \sqrt n \, \hat m / (\sqrt{\hat v} + \epsilon)

    .. math::
        v \leftarrow v \frac{\|w\|^2}{\|w^+\|^2}, \qquad
        m \leftarrow \frac{\langle w, w^+\rangle\, m - \langle m, w^+\rangle\, w}{\|w^+\|^2}

    with n the fan-in. The transported m is orthogonal to :math:`w^+`. It is parallel transport, times
    :math:`\|w\|/\|w^+\|`, only for the part of m along the motion; the rest is shorter by its cosine.

    Args:
        params: Weight rows: tensors of two or more dimensions, or the param groups of `riembn.Split.groups`.
        lr: Learning rate.
        betas: Decay of the moments, each in [0, 1).
        eps: Added to the root of the second moment, and to :math:`\|w^+\|^2` where moments are divided by it.
        weight_decay: λ of a decay within the gradient, ``g + λ w``.
        transport: Whether R and T are done; without them the method is called AdamS.

    Source: Roburin et al. (2022), arXiv:2006.13382, as released (ymontmarin/adamsrt), with its defaults.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        transport: bool = True,
    ) -> None:
        defaults = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, transport=transport)
        super().__init__(params, defaults)

    def update(self, w: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        (beta1, beta2), eps = group["betas"], group["eps"]
        g = g + group["weight_decay"] * w
        square = _dot(g, g)
        t = state["step"] = state.get("step", 0) + 1
        m = beta1 * state.get("exp_avg", torch.zeros_like(g)) + (1 - beta1) * g
        v = beta2 * state.get("exp_avg_sq", torch.zeros_like(square)) + (1 - beta2) * square
        rate = group["lr"] * math.sqrt(w.shape[1])
        new = w - rate * m / (1 - beta1**t) / ((v / (1 - beta2**t)).sqrt() + eps)
        if group["transport"]:
            length = _dot(new, new) + eps
            v = v * _dot(w, w) / length
            m = (_dot(w, new) * m - _dot(m, new) * w) / length
        state["exp_avg"], state["exp_avg_sq"] = m, v
        return new


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1, keepdim=True)
