"""What does one list operation work on? On a CPU a piece of a weight that stays in cache, elsewhere all that fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..geometry import row_view
from .row_math import Along, add_orthogonality, compute_dtype

BLOCK = 1 << 20
"""Entries of a piece: so few that every operation but the first finds them in cache, so many that calls are few."""


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
    layout: dict[str, Any],
    alpha: float = 0.0,
) -> Iterator[Batch]:
    """The weights of a param group, cut between rows on a CPU, in few batches on other devices.

    Args:
        states: For each kind, what belongs to each parameter: a tensor in its shape, one of shape ``(rows,)``,
            or a value for all rows.
        alpha: Weight of the orthogonality regularizer, whose gradient is added to ``grads``.
    """
    together: dict[Any, list[list[Any]]] = {}
    memory: dict[Any, Tensor] = {}
    for p, g, *kept in zip(params, grads, *states, strict=True):
        if alpha:
            (g,) = add_orthogonality([p], [g], alpha, layout)
        dtype = compute_dtype(p.dtype)
        along = row_view(p, **layout)[1]
        if p.device.type == "cpu" and not torch.compiler.is_compiling():
            for piece, grad, *parts in _cut([p, g, *kept], layout, BLOCK):
                weight = piece.to(dtype)
                scratch = [_scratch(weight, memory)]
                yield Batch([piece], [weight], [grad.to(dtype)], [[part] for part in parts], scratch, along)
        else:
            ((piece, grad, *parts),) = _cut([p, g, *kept], layout, p.numel())
            lists = together.setdefault((p.device, p.dtype, along), [[] for _ in range(3 + len(kept))])
            for values, value in zip(lists, (piece, piece.to(dtype), grad.to(dtype), *parts), strict=True):
                values.append(value)
    for (_, _, along), (targets, weights, gs, *kept) in together.items():
        yield Batch(targets, weights, gs, kept, [torch.empty_like(weight) for weight in weights], along)


def store(batch: Batch) -> None:
    """Round weights that were worked on in float32 copies back into half-precision parameters."""
    for target, weight in zip(batch.targets, batch.weights, strict=True):
        if target.dtype != weight.dtype:
            target.copy_(weight)


def _cut(values: Sequence[Any], layout: dict[str, Any], entries: int) -> Iterator[tuple[Any, ...]]:
    """Row views of one weight (the first value) and of what belongs to it, in pieces of about ``entries``."""
    view, along = row_view(values[0], **layout)
    numbering = [d for d in range(view.dim()) if d not in along]
    one_value_a_row = [1 if d in along else n for d, n in enumerate(view.shape)]
    views = []
    for value in values:
        if isinstance(value, Tensor) and value.dim() > 1:
            views.append(row_view(value, **layout)[0])
        else:
            views.append(value.view(one_value_a_row) if isinstance(value, Tensor) and value.dim() else value)
    if view.numel() <= entries or not numbering:
        return iter([tuple(views)])
    first = numbering[0]
    rows = max(1, entries * view.shape[first] // view.numel())
    pieces = -(-view.shape[first] // rows)
    cut = [v.split(rows, first) if isinstance(v, Tensor) and v.dim() else [v] * pieces for v in views]
    return zip(*cut, strict=True)


def _scratch(weight: Tensor, memory: dict[Any, Tensor]) -> Tensor:
    """A tensor in the shape and memory order of ``weight``, for pieces always at the same place in memory.

    A new one each time would be new pages from the system each time, which cost more than the arithmetic.
    """
    if weight.numel() > BLOCK:
        return torch.empty_like(weight)
    key = weight.dtype, weight.shape, weight.stride()
    if key not in memory:
        if weight.dtype not in memory:
            memory[weight.dtype] = weight.new_empty(BLOCK)
        order = sorted(range(weight.dim()), key=weight.stride, reverse=True)
        flat = memory[weight.dtype][: weight.numel()].view([weight.shape[d] for d in order])
        memory[key] = flat.permute([order.index(d) for d in range(weight.dim())])
    return memory[key]
