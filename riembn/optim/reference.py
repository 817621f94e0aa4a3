r"""One step of each method in float64, one weight row at a time, every line an equation.

The fast paths of `SGDG`, `AdamG` and `PSISGD` are tested against these functions in weights and in state, and the
chapters walk through them. Nothing here is in a hurry: vectors are 1-D float64 tensors, scalars Python floats.

Sources: Cho and Lee (2017), arXiv:1709.09603, Algorithms for SGD-G and Adam-G as their TensorFlow release runs
them (the release renormalizes the weight row at each step and keeps the learning rate inside the momentum);
PSI-SGD after Yi (2022), PMLR 180:1128-1137, Equations 10 and 11; the powers of two are ours.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..geometry import Layout, sphere


def clip(h: Tensor, grad_clip: float | None) -> Tensor:
    r"""Per-row clipping, :math:`\hat h = h \min(1, \nu/\|h\|)`: the direction stays, the norm ends at nu."""
    norm = _norm(h)
    if grad_clip is None or norm <= grad_clip:
        return h
    return h * (grad_clip / norm)


def sgd_g(
    w: Tensor, g: Tensor, tau: Tensor, *, lr: float, momentum: float, grad_clip: float | None
) -> tuple[Tensor, Tensor]:
    """One step of SGD-G: ``(w, g, tau) -> (w, tau)``; ``tau`` is the last displacement, in radians."""
    y = w / _norm(w)
    h = sphere.project_tangent(y, g)  # Riemannian gradient
    d = momentum * tau - lr * clip(h, grad_clip)  # the rate is inside the momentum
    return sphere.exp_map(y, d), sphere.parallel_transport(y, d, d)


def adam_g(
    w: Tensor,
    g: Tensor,
    m: Tensor,
    v: float,
    *,
    t: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    grad_clip: float | None,
) -> tuple[Tensor, Tensor, float]:
    """Step ``t`` (from 1) of Adam-G: ``(w, g, m, v) -> (w, m, v)``; ``v`` is one number a weight row."""
    beta1, beta2 = betas
    y = w / _norm(w)
    h = clip(sphere.project_tangent(y, g), grad_clip)
    m = beta1 * m + (1 - beta1) * h
    v = beta2 * v + (1 - beta2) * float(h @ h)
    correction = math.sqrt(1 - beta2**t) / (1 - beta1**t)
    # eps stands inside the root, beside the uncorrected v; with eps = 0 a row without any gradient stays.
    d = -lr * correction * m / math.sqrt(v + eps) if v + eps else 0 * m
    return sphere.exp_map(y, d), sphere.parallel_transport(y, d, m), v


def psi_sgd(w: Tensor, g: Tensor, m: Tensor, *, lr: float, momentum: float) -> tuple[Tensor, Tensor]:
    """One step of PSI-SGD: ``(w, g, m) -> (w, m)``. If w is c times as long, so is the result."""
    largest = float(w.abs().max())
    if not 2.0**-SAFE_EXPONENT <= largest < 2.0**SAFE_EXPONENT:
        # The same point of the manifold, further from the end of float32. A power of two rounds nothing;
        # the gradient at the shorter row is longer by the same factor.
        scale = 2.0 ** -math.frexp(largest)[1]
        w, m, g = w * scale, m * scale, g / scale
    m = momentum * m - lr * float(w @ w) * g
    return w + m, m


SAFE_EXPONENT = 24
"""PSI-SGD rescales a row whose largest entry leaves [2^-24, 2^24): |w|^2 then stays within float32 for any fan-in."""
SAFE_EXPONENT_FLOAT16 = 8
"""The same for weights stored in float16, which ends at 2^16 and has lost digits below 2^-14."""


def orthogonality(rows: Tensor) -> float:
    r""":math:`L^O / \alpha = \tfrac12 \|Y Y^\top - I\|_F^2`, Y the unit rows, shape ``(rows, fan_in)``."""
    total = 0.0
    for i, y in enumerate(rows):
        for j, z in enumerate(rows):
            total += (float(y @ z) - (i == j)) ** 2
    return total / 2


def orthogonality_grad(rows: Tensor, alpha: float) -> Tensor:
    r""":math:`\nabla L^O = 2\alpha\,(Y Y^\top Y - Y)`, the gradient of alpha times `orthogonality`."""
    grad = torch.zeros_like(rows)
    for i, y in enumerate(rows):
        grad[i] = 2 * alpha * (sum(float(y @ z) * z for z in rows) - y)
    return grad


def step_rows(
    method: str,
    weight: Tensor,
    grad: Tensor,
    state: dict[str, Tensor],
    *,
    alpha: float = 0.0,
    t: int = 1,
    row_dim: int = 0,
    conv_groups: int = 1,
    channels_per_row: int | None = 1,
    **options: float | tuple[float, float] | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """One step of a whole weight tensor, row by row, in float64.

    Args:
        method: "sgd-g", "adam-g" or "psi-sgd".
        weight, grad: Tensors of one shape; the layout's three values are those of `riembn.geometry.rows`.
        state: What the optimizer keeps for this weight (``momentum_buffer``, or ``exp_avg`` and
            ``exp_avg_sq``); an empty dict before the first step.
        alpha, t, options: The method's hyper-parameters, by the optimizer's names.

    Returns:
        The new weight and the new state, float64, in the shapes the optimizers use.
    """
    layout = Layout(row_dim, conv_groups, channels_per_row)
    rows, grads = (layout.rows(x.detach().double()).clone() for x in (weight, grad))
    if alpha and len(rows):
        grads += orthogonality_grad(torch.stack([w / _norm(w) for w in rows]), alpha)
    key = "exp_avg" if method == "adam-g" else "momentum_buffer"
    first = state[key].double() if key in state else torch.zeros_like(weight, dtype=torch.float64)
    moments = layout.rows(first).clone()
    second = state["exp_avg_sq"].double().clone() if "exp_avg_sq" in state else rows.new_zeros(len(rows))
    for i in range(len(rows)):
        if method == "sgd-g":
            rows[i], moments[i] = sgd_g(rows[i], grads[i], moments[i], **options)  # type: ignore[arg-type]
        elif method == "adam-g":
            rows[i], moments[i], v = adam_g(
                rows[i],
                grads[i],
                moments[i],
                float(second[i]),
                t=t,
                **options,  # type: ignore[arg-type]
            )
            second[i] = v
        elif method == "psi-sgd":
            rows[i], moments[i] = psi_sgd(rows[i], grads[i], moments[i], **options)  # type: ignore[arg-type]
        else:
            raise ValueError(f"step_rows: no method {method!r}; there are 'sgd-g', 'adam-g' and 'psi-sgd'.")
    after = {key: layout.tensors(moments, weight)[0]}
    if method == "adam-g":
        after["exp_avg_sq"] = second
    return layout.tensors(rows, weight)[0], after


def _norm(x: Tensor) -> float:
    """Norm by way of the largest entry, so that squares neither overflow nor vanish."""
    largest = float(x.abs().max()) if x.numel() else 0.0
    return largest * float(torch.linalg.vector_norm(x / largest)) if largest else 0.0
