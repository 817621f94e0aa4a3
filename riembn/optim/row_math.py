"""Per-row arithmetic of the eager optimizers: norms that cannot overflow, and one scalar a row for many tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..geometry import from_rows, row_view, to_rows
from ..kernels import cpu, fused
from .orthogonality import orthogonality_grad

Along = tuple[int, ...]


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of the arithmetic and of the state: float32 for half-precision weights, else their own."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def power_of_two_scale(x: Tensor, along: Along) -> Tensor:
    """Per row, the power of two that brings the largest entry into [1/2, 1); 1 for a zero row.

    Multiplying by it rounds nothing, and after it squares neither overflow nor vanish.
    """
    largest = torch.linalg.vector_norm(x, ord=math.inf, dim=along, keepdim=True)
    return _power_of_two(largest)


def safe_norm(x: Tensor, along: Along) -> Tensor:
    """Euclidean norm of each row, right from the smallest subnormal to the largest finite entry."""
    scale = power_of_two_scale(x, along)
    return torch.linalg.vector_norm(x * scale, dim=along, keepdim=True) / scale


def clipped_tangent(y: Tensor, g: Tensor, along: Along, grad_clip: float | None) -> Tensor:
    """Riemannian gradient of each unit row, clipped to ``grad_clip`` radians."""
    scale = power_of_two_scale(g, along)
    h = g * scale
    h = h - (y * h).sum(along, keepdim=True) * y
    return h * clip_factor(torch.linalg.vector_norm(h, dim=along, keepdim=True), scale, grad_clip)


def clip_factor(norm: Tensor, scale: Tensor, grad_clip: float | None) -> Tensor:
    """What a gradient multiplied by ``scale``, of norm ``norm``, is to be multiplied by: min(1/scale, nu/norm)."""
    unscale = scale.reciprocal()
    if grad_clip is None:
        return unscale
    # Division by a zero norm gives inf (or NaN for nu = 0), and fmin takes the other.
    return torch.fmin(unscale, grad_clip / norm)


class RowScalars:
    """One scalar a row for a list of tensors, kept in one flat vector, so that its arithmetic is one call.

    ``views[i]`` has rows numbered by all dimensions but ``along``; ``join`` takes per-tensor results of
    reductions over ``along`` into the flat vector, ``split`` gives columns that broadcast with the views.
    """

    def __init__(self, views: Sequence[Tensor], along: Along) -> None:
        self.along = along
        self.shapes = [tuple(1 if d in along else n for d, n in enumerate(view.shape)) for view in views]
        self.counts = [math.prod(shape) for shape in self.shapes]

    def join(self, columns: Sequence[Tensor]) -> Tensor:
        return torch.cat([c.reshape(-1) for c in columns])

    def split(self, flat: Tensor) -> list[Tensor]:
        return [part.view(shape) for part, shape in zip(flat.split(self.counts), self.shapes, strict=True)]

    def norms(self, tensors: Sequence[Tensor], ord: float = 2) -> Tensor:
        return self.join([torch.linalg.vector_norm(t, ord=ord, dim=self.along) for t in tensors])

    def dots(self, left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
        return self.join([(a * b).sum(self.along) for a, b in zip(left, right, strict=True)])

    def scales(self, tensors: Sequence[Tensor]) -> Tensor:
        return _power_of_two(self.norms(tensors, math.inf))

    def safe_norms(self, tensors: Sequence[Tensor]) -> Tensor:
        scale = self.scales(tensors)
        scaled = [t * s for t, s in zip(tensors, self.split(scale), strict=True)]
        return self.norms(scaled) / scale


class Batch(NamedTuple):
    """Weights that one list operation can serve: one device, one type, rows along the same dimensions."""

    params: list[Tensor]
    weights: list[Tensor]  # views of the params; for half precision float32 copies, see `store`
    grads: list[Tensor]  # views of the gradients (or float32 copies): not to be written to
    states: list[list[Tensor]]  # views of the state tensors, one list for each kind
    along: Along


def batches(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    states: Sequence[Sequence[Tensor]],
    layout: dict[str, Any],
) -> Iterator[Batch]:
    """The tensors of a param group in as few batches as their devices, types and dimensions allow."""
    found: dict[Any, Batch] = {}
    for p, g, *kept in zip(params, grads, *states, strict=True):
        dtype = compute_dtype(p.dtype)
        weight, along = row_view(p, **layout)
        batch = found.setdefault((p.device, p.dtype, along), Batch([], [], [], [[] for _ in kept], along))
        batch.params.append(p)
        batch.weights.append(weight.to(dtype))
        batch.grads.append(row_view(g, **layout)[0].to(dtype))
        for views, state in zip(batch.states, kept, strict=True):
            views.append(row_view(state, **layout)[0])
    yield from found.values()


def tangents(
    batch: Batch, rows: RowScalars, alpha: float, layout: dict[str, Any]
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Riemannian gradients of a batch, unclipped; with ``alpha`` the weights are brought to unit norm on the way.

    Returns:
        New tensors that hold the gradients times a power of two a row, which keeps their squares finite; these
        powers; and the factors that make the weights unit rows. The last two have one value a row.
    """
    ys, gs = batch.weights, batch.grads
    shrink = rows.norms(ys).reciprocal_()
    if alpha:
        torch._foreach_mul_(ys, rows.split(shrink))
        shrink.fill_(1)
        gs = [
            g + orthogonality_term(y, p, alpha, layout) for p, y, g in zip(batch.params, ys, gs, strict=True)
        ]
    scale = rows.scales(gs)
    hs = [g * s for g, s in zip(gs, rows.split(scale), strict=True)]
    radial = rows.dots(ys, hs).mul_(shrink.square())
    for h, y, r in zip(hs, ys, rows.split(radial.neg_()), strict=True):
        h.addcmul_(y, r)
    return hs, scale, shrink


def fused_batches(
    params: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[Sequence[Any]], layout: dict[str, Any]
) -> tuple[list[tuple[Any, list[list[Any]]]], list[list[Any]]]:
    """Which weights the fused steps take, with their gradients and states, and which are left.

    Returns:
        For each call of a fused step its module in `riembn.kernels` and lists of the parameters, of the gradients,
        and of each kind of state; and these lists of all that is left.
    """
    columns = (params, grads, *states)
    members: dict[Any, list[int]] = {}
    for i, p in enumerate(params):
        kernels = fused(p, layout)
        kind = (kernels, p.device, p.dtype if kernels is cpu else None) if kernels else None
        members.setdefault(kind, []).append(i)
    left = [[column[i] for i in members.get(None, ())] for column in columns]
    if len(members) == 1 and not left[0]:
        return [(kernels, [list(column) for column in columns]) for kernels, *_ in members], left
    return [
        (kind[0], [[column[i] for i in indices] for column in columns])
        for kind, indices in members.items()
        if kind
    ], left


def add_orthogonality(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    alpha: float,
    layout: dict[str, Any],
    grad_scale: Tensor | None = None,
) -> list[Tensor]:
    """The gradients plus those of L^O at the unit rows of the parameters (times ``grad_scale``, as theirs are).

    Weights of one shape share their matrix products, which on a CUDA device run in TF32 where torch allows it
    (`torch.set_float32_matmul_precision`).
    """
    shared: dict[Any, list[int]] = {}
    rows = [to_rows(p, **layout).to(compute_dtype(p.dtype)) for p in params]
    for i, y in enumerate(rows):
        # On a CPU one product of large matrices takes all cores, and joining them only costs.
        alone = i if y.device.type == "cpu" and y.numel() > 2**14 else None
        shared.setdefault((y.device, y.dtype, y.shape, alone), []).append(i)
    summed = list(grads)
    for members in shared.values():
        y = torch.stack([rows[i] for i in members])
        y /= torch.linalg.vector_norm(y, dim=-1, keepdim=True)
        terms = orthogonality_grad(y, alpha)
        if grad_scale is not None:
            terms *= grad_scale.to(terms.device)
        for i, term in zip(members, terms, strict=True):
            summed[i] = grads[i] + from_rows(term, params[i], **layout)
    return summed


def store(batch: Batch, layout: dict[str, Any]) -> None:
    """Round weights that were worked on in float32 copies back into half-precision parameters."""
    for p, weight in zip(batch.params, batch.weights, strict=True):
        if p.dtype != weight.dtype:
            row_view(p, **layout)[0].copy_(weight)


def orthogonality_term(y: Tensor, p: Tensor, alpha: float, layout: dict[str, Any]) -> Tensor:
    """The gradient of L^O at the unit rows ``y`` (a view of a tensor of ``p``'s shape), as such a view."""
    rows = to_rows(y.reshape(p.shape), **layout)
    return row_view(from_rows(orthogonality_grad(rows, alpha), p, **layout), **layout)[0]


def _power_of_two(largest: Tensor) -> Tensor:
    # The exponent is kept in the range in which the power and its reciprocal are both normal numbers.
    limit = 126 if largest.dtype == torch.float32 else 1022
    exponent = torch.frexp(largest).exponent.clamp(-limit, limit)
    return torch.ldexp(torch.ones_like(largest), -exponent)
