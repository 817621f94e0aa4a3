"""Where the entries of a row lie in memory: two strides for rows and two for entries, or the kernels leave it."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch

from ..geometry import Layout


class Strides(NamedTuple):
    """Where the entries of a weight lie: entry e of row r is at its row's two strides plus its own two."""

    rows: int
    fan_in: int
    row_inner: int
    row_outer_stride: int
    row_stride: int
    entry_inner: int
    entry_outer_stride: int
    entry_stride: int

    @property
    def dense(self) -> bool:
        return self.row_inner >= self.rows and self.entry_inner >= self.fan_in and self.entry_stride == 1


@functools.lru_cache(maxsize=4096)
def strides(shape: torch.Size, stride: tuple[int, ...], layout: Layout) -> Strides | None:
    """Rows and strides of a weight; None where they need more than two strides each, or overlap."""
    weight = torch.empty_strided(shape, stride, device="meta")
    if not weight.numel():
        return None
    view, along = layout.view(weight)
    dims = [(view.shape[d], view.stride(d), d in along) for d in range(view.dim()) if view.shape[d] > 1]
    reach = 0
    for size, step, _ in sorted(dims, key=lambda dim: dim[1]):
        if step <= reach:
            return None
        reach += (size - 1) * step
    numbering = _merged([(size, step) for size, step, entry in dims if not entry])
    entries = _merged(sorted(((size, step) for size, step, entry in dims if entry), key=lambda dim: -dim[1]))
    rows, fan_in = math.prod(n for n, _ in numbering), math.prod(n for n, _ in entries)
    if len(numbering) > 2 or len(entries) > 2:
        return None
    (row_outer, row_outer_stride), (row_inner, row_stride) = [(1, 0)] * (2 - len(numbering)) + numbering
    (entry_outer, entry_outer_stride), (entry_inner, entry_stride) = [(1, 0)] * (2 - len(entries)) + entries
    return Strides(
        rows, fan_in, row_inner, row_outer_stride, row_stride or fan_in,
        entry_inner, entry_outer_stride, entry_stride or 1,
    )  # fmt: skip


def _merged(dims: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sizes and strides, outermost first, with what can be walked in one stride made one."""
    merged: list[tuple[int, int]] = []
    for size, step in dims:
        if merged and merged[-1][1] == size * step:
            merged[-1] = (merged[-1][0] * size, step)
        else:
            merged.append((size, step))
    return merged
