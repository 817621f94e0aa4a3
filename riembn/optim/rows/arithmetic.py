"""The arithmetic of the eager steps, one weight at a time: norms of rows that cannot overflow, clipping, L^O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...geometry import Layout
from ..orthogonality import orthogonality_grad

Along = tuple[int, ...]
"""The dimensions of a view (`Layout.view`) that run along a row."""

_WIDE = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of the arithmetic and of the state: float32 for half-precision weights, else their own."""
    return _WIDE.get(dtype, dtype)


def safe_norm(x: Tensor, along: Along) -> Tensor:
    """Euclidean norm of each row, right from the smallest subnormal to the largest finite entry."""
    scale = power_of_two(largest_entry(x, along))
    return torch.linalg.vector_norm(x * scale, dim=along, keepdim=True) / scale


def directions(w: Tensor, along: Along) -> tuple[Tensor, Tensor]:
    """The rows at unit norm, and which have none: a row that is zero stays so."""
    norm = torch.linalg.vector_norm(w, dim=along, keepdim=True)
    dead = norm == 0
    return w / norm.masked_fill(dead, 1), dead


def clipped_tangent(y: Tensor, g: Tensor, along: Along, grad_clip: float | None) -> Tensor:
    """Riemannian gradient of each unit row, clipped to ``grad_clip``, loss per radian."""
    scale = power_of_two(largest_entry(g, along))
    h = g * scale
    for _ in range(2):  # once more for what rounding leaves along y of a gradient that is nearly radial
        h = h - (y * h).sum(along, keepdim=True) * y
    return h * clip_factor(torch.linalg.vector_norm(h, dim=along, keepdim=True), scale, grad_clip)


def clip_factor(norm: Tensor, scale: Tensor | None, grad_clip: float | None) -> Tensor:
    """What a gradient of norm ``norm``, multiplied by ``scale`` (None: 1), needs more: min(1/scale, nu/norm)."""
    unscale = torch.ones_like(norm) if scale is None else scale.reciprocal()
    if grad_clip is None:
        return unscale
    # Division by a zero norm gives inf, and fmin takes the other.
    return torch.fmin(unscale, grad_clip / norm)


def largest_entry(x: Tensor, along: Along) -> Tensor:
    """The largest absolute value of each row, by the extrema: on a CPU a twentieth of the infinity norm's time."""
    return torch.maximum(x.amax(along, keepdim=True), x.amin(along, keepdim=True).neg())


def power_of_two(largest: Tensor) -> Tensor:
    """The power of two that brings ``largest`` into [1/2, 1); 1 for zero.

    Multiplying a row by that of its largest entry rounds nothing, and after it squares neither overflow nor vanish.
    """
    # The exponent is kept in the range in which the power and its reciprocal are both normal numbers.
    limit = 126 if largest.dtype == torch.float32 else 1022
    exponent = torch.frexp(largest).exponent.clamp(-limit, limit)
    return torch.ldexp(torch.ones_like(largest), -exponent)


def add_orthogonality(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    alpha: float,
    layout: Layout,
    grad_scale: Tensor | None = None,
) -> list[Tensor]:
    """The gradients plus those of L^O at the unit rows of the parameters (times ``grad_scale``, as theirs are).

    Weights of one shape share their matrix products, which on a CUDA device run in TF32 where torch allows it
    (`torch.set_float32_matmul_precision`).
    """
    shared: dict[Any, list[int]] = {}
    rows = [layout.rows(p).to(compute_dtype(p.dtype)) for p in params]
    for i, y in enumerate(rows):
        # On a CPU one product of large matrices takes all cores, and joining them only costs.
        alone = i if y.device.type == "cpu" and y.numel() > 2**14 else None
        shared.setdefault((y.device, y.dtype, y.shape, alone), []).append(i)
    summed = list(grads)
    for members in shared.values():
        terms = orthogonality_grad(unit_rows(torch.stack([rows[i] for i in members])), alpha)
        if grad_scale is not None:
            terms *= grad_scale.to(terms.device)
        for i, term in zip(members, terms, strict=True):
            summed[i] = grads[i] + layout.tensors(term, params[i])[0]
    return summed


def unit_rows(y: Tensor) -> Tensor:
    """The rows of a matrix brought to unit norm in place; one that is lost already is not compared with others."""
    y /= torch.linalg.vector_norm(y, dim=-1, keepdim=True)
    return y.nan_to_num_(0, 0, 0)
