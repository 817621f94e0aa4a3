"""Per-row arithmetic of the eager optimizers: norms that cannot overflow, and one scalar a row for many tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...geometry import Layout
from ...kernels import cpu, fused
from ..orthogonality import orthogonality_grad

if TYPE_CHECKING:
    from .lists import Batch

Along = tuple[int, ...]

_WIDE = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of the arithmetic and of the state: float32 for half-precision weights, else their own."""
    return _WIDE.get(dtype, dtype)


def power_of_two_scale(x: Tensor, along: Along) -> Tensor:
    """Per row, the power of two that brings the largest entry into [1/2, 1); 1 for a zero row.

    Multiplying by it rounds nothing, and after it squares neither overflow nor vanish.
    """
    return _power_of_two(largest_entry(x, along))


def largest_entry(x: Tensor, along: Along) -> Tensor:
    """The largest absolute value of each row, by the extrema: on a CPU a twentieth of the infinity norm's time."""
    return torch.maximum(x.amax(along, keepdim=True), x.amin(along, keepdim=True).neg())


def safe_norm(x: Tensor, along: Along) -> Tensor:
    """Euclidean norm of each row, right from the smallest subnormal to the largest finite entry."""
    scale = power_of_two_scale(x, along)
    return torch.linalg.vector_norm(x * scale, dim=along, keepdim=True) / scale


def clipped_tangent(y: Tensor, g: Tensor, along: Along, grad_clip: float | None) -> Tensor:
    """Riemannian gradient of each unit row, clipped to ``grad_clip``, loss a radian."""
    scale = power_of_two_scale(g, along)
    h = g * scale
    for _ in range(2):  # once more for what rounding leaves along y of a gradient that is nearly radial
        h = h - (y * h).sum(along, keepdim=True) * y
    return h * clip_factor(torch.linalg.vector_norm(h, dim=along, keepdim=True), scale, grad_clip)


def clip_factor(norm: Tensor, scale: Tensor | None, grad_clip: float | None) -> Tensor:
    """What a gradient of norm ``norm``, multiplied by ``scale`` (None: 1), needs more: min(1/scale, nu/norm)."""
    unscale = torch.ones_like(norm) if scale is None else scale.reciprocal()
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
        return columns[0] if len(columns) == 1 else torch.cat([c.reshape(-1) for c in columns])

    def split(self, flat: Tensor) -> list[Tensor]:
        if len(self.shapes) == 1:
            return [flat]
        return [part.view(shape) for part, shape in zip(flat.split(self.counts), self.shapes, strict=True)]

    def norms(self, tensors: Sequence[Tensor]) -> Tensor:
        return self.join([torch.linalg.vector_norm(t, dim=self.along, keepdim=True) for t in tensors])

    def dots(self, left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
        products = [(a * b).sum(self.along, keepdim=True) for a, b in zip(left, right, strict=True)]
        return self.join(products)

    def largest(self, tensors: Sequence[Tensor]) -> Tensor:
        high = self.join([t.amax(self.along, keepdim=True) for t in tensors])
        low = self.join([t.amin(self.along, keepdim=True) for t in tensors])
        return torch.maximum(high, low.neg())

    def scales(self, tensors: Sequence[Tensor]) -> Tensor:
        return _power_of_two(self.largest(tensors))

    def safe_norms(self, tensors: Sequence[Tensor]) -> Tensor:
        if can_look(tensors[0]):
            norms = self.norms(tensors)
            if norms.isfinite().all():
                return norms  # where squares vanish, so would the angle
        scale = self.scales(tensors)
        return self.norms([t * s for t, s in zip(tensors, self.split(scale), strict=True)]) / scale


def can_look(x: Tensor) -> bool:
    """Whether a decision may depend on values: on a GPU it would wait for them, in a compiled graph break it."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def tangents(batch: Batch, rows: RowScalars, grad_clip: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """The Riemannian gradients h of a batch, in its scratch tensors.

    Returns:
        One value a row: the norm of h; the factor that clips h, and undoes what it may be scaled by; and the
        factor that makes the weight a unit row.
    """
    ws, gs, hs = batch.weights, batch.grads, batch.scratch
    shrink = rows.norms(ws).reciprocal_()
    if can_look(ws[0]):
        for w, g, h in zip(ws, gs, hs, strict=True):
            torch.mul(w, g, out=h)
        radial = rows.join([h.sum(rows.along, keepdim=True) for h in hs]).mul_(shrink)  # <w, g> / |w|
        for w, g, h, r in zip(ws, gs, hs, rows.split(radial * shrink), strict=True):
            torch.addcmul(g, w, r, value=-1, out=h)
        norm = rows.norms(hs)
        # Not where a gradient is nearly radial, and so where the squares of h vanish or overflow, or it is not finite.
        least, most = torch.aminmax(norm.sub(radial.abs_(), alpha=1e-2))
        if least >= 0 and most < math.inf:
            return norm, clip_factor(norm, None, grad_clip), shrink
    # The careful way: scaled against overflow, and projected twice against what rounding leaves along w.
    scale = rows.scales(gs)
    for g, s, h in zip(gs, rows.split(scale), hs, strict=True):
        torch.mul(g, s, out=h)
    for _ in range(2):
        radial = rows.dots(ws, hs).mul_(shrink).mul_(shrink)
        for h, w, r in zip(hs, ws, rows.split(radial), strict=True):
            h.addcmul_(w, r, value=-1)
    norm = rows.norms(hs)
    return norm, clip_factor(norm, scale, grad_clip), shrink


def turn(batch: Batch, rows: RowScalars, vs: Sequence[Tensor], *coefficients: Tensor) -> None:
    """In place w <- a w + b v and v <- c w + d v, the coefficients a, b, c, d with one value a row each."""
    a, b, c, d = coefficients
    if can_look(a) and d.amin() > 0.5:  # d is the cosine of the angle, so neither a nor d is near zero
        # v <- (d - b c / a) v + (c / a) (a w + b v): one pass over memory less
        c = c / a
        d = torch.addcmul(d, b, c, value=-1)
        for w, v, a_, b_, c_, d_ in zip(batch.weights, vs, *map(rows.split, (a, b, c, d)), strict=True):
            w.mul_(a_).addcmul_(v, b_)
            v.mul_(d_).addcmul_(w, c_)
        return
    for w, v, product, a_, b_, c_, d_ in zip(
        batch.weights, vs, batch.scratch, *map(rows.split, coefficients), strict=True
    ):
        torch.mul(w, c_, out=product)
        w.mul_(a_).addcmul_(v, b_)
        v.mul_(d_).add_(product)


def fused_batches(
    params: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[Sequence[Any]], layout: Layout
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
        y = torch.stack([rows[i] for i in members])
        y /= torch.linalg.vector_norm(y, dim=-1, keepdim=True)
        y.nan_to_num_(0, 0, 0)  # a row that is lost already is no longer compared with others
        terms = orthogonality_grad(y, alpha)
        if grad_scale is not None:
            terms *= grad_scale.to(terms.device)
        for i, term in zip(members, terms, strict=True):
            summed[i] = grads[i] + layout.tensors(term, params[i])[0]
    return summed


def orthogonality_term(y: Tensor, p: Tensor, alpha: float, layout: Layout) -> Tensor:
    """The gradient of L^O at the unit rows ``y`` (a view of a tensor of ``p``'s shape), as such a view."""
    rows = layout.rows(y.reshape(p.shape)).nan_to_num(0, 0, 0)
    return layout.view(layout.tensors(orthogonality_grad(rows, alpha), p)[0])[0]


def _power_of_two(largest: Tensor) -> Tensor:
    # The exponent is kept in the range in which the power and its reciprocal are both normal numbers.
    limit = 126 if largest.dtype == torch.float32 else 1022
    exponent = torch.frexp(largest).exponent.clamp(-limit, limit)
    return torch.ldexp(torch.ones_like(largest), -exponent)
