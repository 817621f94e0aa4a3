"""A weight and its bias that turn as one row: packed into rows for a step, unpacked after it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from ...geometry import Layout
from .sharded import is_sharded, keep_part, local, placed_as, rows_are_whole, rows_like, stand_in, whole

Pair = tuple[Tensor, Tensor]


def pairs(params: Sequence[Tensor], caller: str) -> list[Pair]:
    """The parameters of a group with ``joint=True``: weight, bias, weight, bias, and so on.

    Raises:
        ValueError: If they do not come in twos, or a bias is not of its weight's type and device.
    """
    if len(params) % 2:
        raise ValueError(
            f"{caller}: a group with joint=True holds {len(params)} parameters, but weights and biases come in "
            "turn; give riembn.split(...).groups() as it is."
        )
    found = list(zip(params[::2], params[1::2], strict=True))
    for weight, bias in found:
        if (weight.dtype, weight.device) != (bias.dtype, bias.device):
            raise ValueError(
                f"{caller}: a weight of shape {tuple(weight.shape)} is {weight.dtype} on {weight.device}, its bias "
                f"{bias.dtype} on {bias.device}; one row needs one type and one device."
            )
    return found


def pack(weight: Tensor, bias: Tensor, layout: Layout) -> Tensor:
    """Weight and bias side by side, as the rows of a new matrix."""
    weight, bias = weight.detach(), bias.detach()
    if not is_sharded(weight) or not is_sharded(bias):
        return layout.rows(weight, bias)
    if rows_are_whole(weight, layout) and bias.placements == weight.placements:
        return rows_like(weight, layout.rows(local(weight), local(bias)), layout)
    return layout.rows(whole(weight), whole(bias))


@contextmanager
def as_rows(optimizer: Optimizer, found: Sequence[Pair], layout: Layout) -> Iterator[list[Tensor]]:
    """Pairs as matrices of rows, with gradients and state; what is done to them is done to the pairs at the end.

    Inside, ``optimizer.state`` belongs to the matrices. Outside, each parameter has its own in its own shape; what
    has one value a row, or is one number, is kept for the weight.

    Args:
        optimizer: Whose state it is.
        found: Weights and their biases; a bias without a gradient counts as one whose gradient is zero.
        layout: How the weights are read as rows, see `riembn.geometry.rows`.
    """
    state, packed = optimizer.state, []
    optimizer.state = defaultdict(dict)
    try:
        for weight, bias in found:
            rows = pack(weight, bias, layout)
            if weight.grad is not None:
                of_bias = torch.zeros_like(bias) if bias.grad is None else placed_as(bias, bias.grad)
                rows.grad = pack(placed_as(weight, weight.grad), of_bias, layout)
            shared = state.get(bias, {})
            optimizer.state[rows] = {
                key: pack(value, shared[key], layout) if key in shared else value
                for key, value in state.get(weight, {}).items()
            }
            packed.append(rows)
        yield packed
        for (weight, bias), rows in zip(found, packed, strict=True):
            _copy(rows, weight, bias, layout)
            for key, value in optimizer.state[rows].items():
                if not isinstance(value, Tensor) or value.shape != rows.shape:
                    state[weight][key] = value
                    continue
                for p in (weight, bias):
                    kept = state[p].get(key)
                    if kept is None or (kept.dtype, kept.device) != (value.dtype, p.device):
                        state[p][key] = torch.zeros_like(p, dtype=value.dtype)
                _copy(value, state[weight][key], state[bias][key], layout)
    finally:
        optimizer.state = state


def _copy(rows: Tensor, weight: Tensor, bias: Tensor, layout: Layout) -> None:
    if is_sharded(rows):
        rows, weight, bias = local(rows), local(weight), local(bias)
    of_weight, of_bias = layout.tensors(rows, stand_in(weight), stand_in(bias))
    keep_part(weight, of_weight)
    keep_part(bias, of_bias)
