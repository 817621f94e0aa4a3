"""The step over lists of tensors: many weights in one call, on a CPU in pieces that stay in cache.

One scalar a row (a norm, a rate) is kept for all weights of a `Batch` in one flat vector, so that its arithmetic is
one call as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...geometry import Layout
from .arithmetic import Along, clip_factor, compute_dtype, power_of_two

BLOCK = 1 << 20
"""Entries of a piece: so few that every operation but the first finds them in cache, so many that calls are few.

A weight is cut evenly, since a call takes long for a small rest, too: into pieces of two thirds to three halves of
it, or of one row where rows are longer.
"""


@dataclass(eq=False)
class Batch:
    """Views of weights of one device and type, their rows along the same dimensions, and of what belongs to them."""

    targets: list[Tensor]  # the parameters
    weights: list[Tensor]  # the same; for half precision float32 copies, see `store`
    grads: list[Tensor]  # or float32 copies: not to be written to
    states: list[list[Any]]  # one list for each kind
    scratch: list[Tensor]  # one for each weight, to be written over
    along: Along
    _dead: Tensor | None = None  # which rows are zero and have no direction, if any may be

    def __post_init__(self) -> None:
        self._columns = [tuple(1 if d in self.along else n for d, n in enumerate(w.shape)) for w in self.weights]

    def join(self, columns: Sequence[Tensor]) -> Tensor:
        """The flat vector of results of reductions over ``along``, one a weight."""
        return columns[0] if len(columns) == 1 else torch.cat([c.reshape(-1) for c in columns])

    def split(self, flat: Tensor) -> list[Tensor]:
        """The inverse of `join`: columns that broadcast with the weights."""
        if len(self._columns) == 1:
            return [flat]
        parts = flat.split([math.prod(shape) for shape in self._columns])
        return [part.view(shape) for part, shape in zip(parts, self._columns, strict=True)]

    def norms(self, tensors: Sequence[Tensor]) -> Tensor:
        return self.join([torch.linalg.vector_norm(t, dim=self.along, keepdim=True) for t in tensors])

    def largest(self, tensors: Sequence[Tensor]) -> Tensor:
        """The largest absolute value of each row."""
        high = self.join([t.amax(self.along, keepdim=True) for t in tensors])
        low = self.join([t.amin(self.along, keepdim=True) for t in tensors])
        return torch.maximum(high, low.neg())

    def safe_norms(self, tensors: Sequence[Tensor]) -> Tensor:
        """Norms whose squares may overflow."""
        if _can_look(tensors[0]):
            norms = self.norms(tensors)
            if norms.isfinite().all():
                return norms  # where squares vanish, so would the angle
        scale = power_of_two(self.largest(tensors))
        return self.norms([t * s for t, s in zip(tensors, self.split(scale), strict=True)]) / scale

    def tangents(self, grad_clip: float | None) -> tuple[Tensor, Tensor, Tensor]:
        """The Riemannian gradients h, written to `scratch`.

        Returns:
            One value a row: the norm of h; the factor that clips h, and undoes what it may be scaled by; and the
            factor that makes the weight a unit row.
        """
        ws, gs, hs = self.weights, self.grads, self.scratch
        shrink = self.norms(ws).reciprocal_()
        if _can_look(ws[0]):
            for w, g, h in zip(ws, gs, hs, strict=True):
                torch.mul(w, g, out=h)
            radial = self.join([h.sum(self.along, keepdim=True) for h in hs]).mul_(shrink)  # <w, g> / |w|
            for w, g, h, r in zip(ws, gs, hs, self.split(radial * shrink), strict=True):
                torch.addcmul(g, w, r, value=-1, out=h)
            norm = self.norms(hs)
            # Not where a gradient is nearly radial, and so where the squares of h vanish or overflow, or it is not
            # finite, or its weight is zero.
            least, most = torch.aminmax(norm.sub(radial.abs_(), alpha=1e-2))
            if least >= 0 and most < math.inf:
                return norm, clip_factor(norm, None, grad_clip), shrink
        # The careful way: scaled against overflow, and projected twice against what rounding leaves along w.
        dead = shrink.isinf()
        shrink.masked_fill_(dead, 0)
        self._dead = dead if not _can_look(dead) or dead.any() else None
        scale = power_of_two(self.largest(gs))
        for g, s, h in zip(gs, self.split(scale), hs, strict=True):
            torch.mul(g, s, out=h)
        for _ in range(2):
            radial = self._dots(ws, hs).mul_(shrink).mul_(shrink)
            for h, w, r in zip(hs, ws, self.split(radial), strict=True):
                h.addcmul_(w, r, value=-1)
        norm = self.norms(hs)
        return norm, clip_factor(norm, scale, grad_clip).masked_fill_(dead, 0), shrink

    def turn(self, vs: Sequence[Tensor], *coefficients: Tensor) -> None:
        """In place w <- a w + b v and v <- c w + d v, the coefficients a, b, c, d with one value a row each.

        A row that is zero stays zero, and its v becomes so.
        """
        a, b, c, d = coefficients
        if self._dead is not None:
            b, d = (x.masked_fill(self._dead, 0) for x in (b, d))
        if _can_look(a) and d.amin() > 0.5:  # d is the cosine of the angle, so neither a nor d is near zero
            # v <- (d - b c / a) v + (c / a) (a w + b v): one pass over memory less
            c = c / a
            d = torch.addcmul(d, b, c, value=-1)
            for w, v, a_, b_, c_, d_ in zip(self.weights, vs, *map(self.split, (a, b, c, d)), strict=True):
                w.mul_(a_).addcmul_(v, b_)
                v.mul_(d_).addcmul_(w, c_)
            return
        for w, v, product, a_, b_, c_, d_ in zip(
            self.weights, vs, self.scratch, *map(self.split, (a, b, c, d)), strict=True
        ):
            torch.mul(w, c_, out=product)
            w.mul_(a_).addcmul_(v, b_)
            v.mul_(d_).add_(product)

    def store(self) -> None:
        """Round weights that were worked on in float32 copies back into half-precision parameters."""
        for target, weight in zip(self.targets, self.weights, strict=True):
            if target.dtype != weight.dtype:
                target.copy_(weight)

    def _dots(self, left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
        return self.join([(a * b).sum(self.along, keepdim=True) for a, b in zip(left, right, strict=True)])


def batches(columns: Sequence[Sequence[Any]], layout: Layout) -> Iterator[Batch]:
    """Weights with what belongs to them, cut between rows on a CPU, in few batches on other devices.

    Args:
        columns: The weights, their gradients, and for each kind of state what belongs to each weight: a tensor in
            its shape, one of shape ``(rows,)``, or a value for all rows.
        layout: How the weights are read as rows.
    """
    together: dict[Any, list[list[Any]]] = {}
    held: dict[Any, int] = {}  # entries, of each kind
    memory: dict[Any, Tensor] = {}
    for p, *others in zip(*columns, strict=True):
        dtype = compute_dtype(p.dtype)
        kind = p.device, p.dtype, layout.view(p)[1]
        in_cache = p.device.type == "cpu" and not torch.compiler.is_compiling()
        pieces = list(_cut([p, *others], layout, BLOCK if in_cache else p.numel()))
        for piece, grad, *states in pieces:
            values = (piece, piece.to(dtype), grad.to(dtype), *states)
            if len(pieces) > 1:
                yield _batch([[value] for value in values], kind, memory)
                continue
            if in_cache and kind in together and held[kind] + p.numel() > BLOCK:
                yield _batch(together.pop(kind), kind, memory)
            if kind not in together:
                together[kind], held[kind] = [[] for _ in values], 0
            held[kind] += p.numel()
            for column, value in zip(together[kind], values, strict=True):
                column.append(value)
    for kind, lists in together.items():
        yield _batch(lists, kind, memory)


def row_views(values: Sequence[Any], layout: Layout) -> tuple[list[Any], Along]:
    """Views of a weight (the first value) and of what belongs to it, and the dimensions along a row."""
    view, along = layout.view(values[0])
    column = [1 if d in along else n for d, n in enumerate(view.shape)]
    views = []
    for value in values:
        if isinstance(value, Tensor) and value.dim():
            value = layout.view(value)[0] if value.dim() > 1 else value.view(column)
        views.append(value)
    return views, along


def _batch(lists: list[list[Any]], kind: tuple[Any, ...], memory: dict[Any, Tensor]) -> Batch:
    targets, weights, grads, *states = lists
    return Batch(targets, weights, grads, states, _scratch(weights, memory), kind[-1])


def _cut(values: Sequence[Any], layout: Layout, entries: int) -> Iterator[tuple[Any, ...]]:
    """The row views of one weight and of what belongs to it, in pieces of about ``entries``."""
    views, along = row_views(values, layout)
    view = views[0]
    first = next((d for d in range(view.dim()) if d not in along), 0)
    pieces = min(round(view.numel() / entries), view.shape[first]) if entries and first not in along else 1
    if pieces < 2:
        return iter([tuple(views)])
    cut = [
        v.tensor_split(pieces, first) if isinstance(v, Tensor) and v.dim() else [v] * pieces for v in views
    ]
    return zip(*cut, strict=True)


def _scratch(weights: list[Tensor], memory: dict[Any, Tensor]) -> list[Tensor]:
    """Tensors in the shapes and memory orders of ``weights``, for pieces always at the same place in memory.

    New ones each time would be new pages from the system each time, which cost more than the arithmetic.
    """
    first, sizes = weights[0], [w.numel() for w in weights]
    if first.device.type != "cpu" or torch.compiler.is_compiling():
        return [torch.empty_like(weight) for weight in weights]
    if first.dtype not in memory or memory[first.dtype].numel() < sum(sizes):
        memory[first.dtype] = first.new_empty(sum(sizes))
    flat = memory[first.dtype][: sum(sizes)].split(sizes)
    return [_in_order_of(w, part) for w, part in zip(weights, flat, strict=True)]


def _in_order_of(weight: Tensor, flat: Tensor) -> Tensor:
    order = sorted(range(weight.dim()), key=weight.stride, reverse=True)
    return flat.view([weight.shape[d] for d in order]).permute([order.index(d) for d in range(weight.dim())])


def _can_look(x: Tensor) -> bool:
    """Whether a decision may depend on values: on a GPU it would wait for them, in a compiled graph break it."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()
