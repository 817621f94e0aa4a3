"""What does one list operation work on? On a CPU a piece of a weight that stays in cache, elsewhere all that fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...geometry import Layout
from .arithmetic import Along, add_orthogonality, compute_dtype

BLOCK = 1 << 20
"""Entries of a piece: so few that every operation but the first finds them in cache, so many that calls are few.

A weight is cut evenly, since a call takes long for a small rest, too: into pieces of two thirds to three halves of
it, or of one row where rows are longer.
"""


class Batch(NamedTuple):
    """Views of tensors of one device and type, with rows along the same dimensions."""

    targets: list[Tensor]  # views of the parameters
    weights: list[Tensor]  # the same; for half precision float32 copies, see `store`
    grads: list[Tensor]  # views of the gradients (or float32 copies): not to be written to
    states: list[list[Any]]  # one list for each kind
    scratch: list[Tensor]  # one for each weight, to be written over
    along: Along


def batches(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    states: Sequence[Sequence[Any]],
    layout: Layout,
    alpha: float = 0.0,
) -> Iterator[Batch]:
    """The weights of a param group, cut between rows on a CPU, in few batches on other devices.

    Args:
        states: For each kind, what belongs to each parameter: a tensor in its shape, one of shape ``(rows,)``,
            or a value for all rows.
        alpha: Weight of the orthogonality regularizer, whose gradient is added to ``grads``.
    """
    together: dict[Any, list[list[Any]]] = {}
    held: dict[Any, int] = {}  # entries, of each kind
    memory: dict[Any, Tensor] = {}
    for p, g, *kept in zip(params, grads, *states, strict=True):
        if alpha:
            (g,) = add_orthogonality([p], [g], alpha, layout)
        dtype = compute_dtype(p.dtype)
        kind = p.device, p.dtype, layout.view(p)[1]
        in_cache = p.device.type == "cpu" and not torch.compiler.is_compiling()
        pieces = list(_cut([p, g, *kept], layout, BLOCK if in_cache else p.numel()))
        for piece, grad, *parts in pieces:
            values = (piece, piece.to(dtype), grad.to(dtype), *parts)
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


def _batch(lists: list[list[Any]], kind: tuple[Any, ...], memory: dict[Any, Tensor]) -> Batch:
    targets, weights, grads, *states = lists
    return Batch(targets, weights, grads, states, _scratch(weights, memory), kind[-1])


def store(batch: Batch) -> None:
    """Round weights that were worked on in float32 copies back into half-precision parameters."""
    for target, weight in zip(batch.targets, batch.weights, strict=True):
        if target.dtype != weight.dtype:
            target.copy_(weight)


def _cut(values: Sequence[Any], layout: Layout, entries: int) -> Iterator[tuple[Any, ...]]:
    """Row views of one weight (the first value) and of what belongs to it, in pieces of about ``entries``."""
    view, along = layout.view(values[0])
    numbering = [d for d in range(view.dim()) if d not in along]
    one_value_a_row = [1 if d in along else n for d, n in enumerate(view.shape)]
    views = []
    for value in values:
        if isinstance(value, Tensor) and value.dim() > 1:
            views.append(layout.view(value)[0])
        else:
            views.append(value.view(one_value_a_row) if isinstance(value, Tensor) and value.dim() else value)
    first = numbering[0] if numbering else 0
    pieces = min(round(view.numel() / entries), view.shape[first]) if entries and numbering else 1
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
