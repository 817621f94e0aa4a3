"""Cayley SGD: not each row for itself but all rows of a layer together, orthonormal, turn in one rotation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .base import RowMethod


class CayleySGD(RowMethod):
    r"""SGD with momentum on the Stiefel manifold, by an iterated Cayley transform.

    With X the rows as orthonormal columns, shape ``(fan_in, rows)``, and their gradient G:

    .. math::
        V \leftarrow \gamma V - G, \ \hat W = V X^\top - \tfrac12 X (X^\top V X^\top), \quad W = \hat W - \hat W^\top

    .. math::
        V \leftarrow W X, \quad \alpha = \min(\eta, 1/\|W\|_1), \quad
        Y \leftarrow X + \tfrac{\alpha}{2} W (X + Y) \ \text{ from } Y = X + \alpha V

    The fixed point keeps orthonormal columns; a single row turns by :math:`2\arctan(\alpha\|V\|/2)`.

    Args:
        params: Tensors with no more rows than entries in a row, or such param groups; the rows are made orthonormal
            at construction.
        lr: η, the greatest step.
        momentum: γ, in [0, 1).
        iterations: How often Y is replaced.
        restore_every: After how many steps rounding and the cut iteration are undone by a QR decomposition; the source
            draws these steps by chance, one in a hundred.

    W has ``fan_in²`` entries: this is for layers of a few thousand inputs a row.

    Source: Li, Li and Todorovic (ICLR 2020), arXiv:2002.01113, as released (JunLi-Galios/
    Optimization-on-Stiefel-Manifold-via-Cayley-Transform), with its rate for these weights.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.1,
        *,
        momentum: float = 0.9,
        iterations: int = 5,
        restore_every: int = 100,
    ) -> None:
        defaults = dict(lr=lr, momentum=momentum, iterations=iterations, restore_every=restore_every)
        super().__init__(params, defaults)

    def prepare(self, w: Tensor, group: dict[str, Any]) -> Tensor:
        if w.shape[0] > w.shape[1]:
            raise ValueError(
                f"CayleySGD: {w.shape[0]} rows of {w.shape[1]} entries cannot be orthonormal; give wider layers alone "
                'to it (riembn.split(model, example_input, rule="paper") takes those).'
            )
        return _orthonormal(w.T).T

    def update(self, w: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        x = w.T
        v = group["momentum"] * state.get("momentum_buffer", torch.zeros_like(w)).T - g.T
        half = v @ x.T - x @ (x.T @ v @ x.T) / 2
        turn = half - half.T
        v = turn @ x
        state["momentum_buffer"] = v.T
        alpha = torch.clamp(1 / turn.abs().sum(0).max(), max=float(group["lr"]))
        y = x + alpha * v
        for _ in range(group["iterations"]):
            y = x + alpha / 2 * (turn @ (x + y))
        t = state["step"] = state.get("step", 0) + 1
        return (_orthonormal(y) if t % group["restore_every"] == 0 else y).T


def _orthonormal(x: Tensor) -> Tensor:
    """The Q of QR with a positive diagonal in R: columns that are orthonormal already stay where they are."""
    q, r = torch.linalg.qr(x)
    return q * torch.where(r.diagonal() < 0, -1.0, 1.0)
