"""Weights that lie in parts on many devices: each device moves its own rows.

`torch.distributed.fsdp.fully_shard` cuts every parameter along dimension 0, which numbers the rows, and so a
device needs nothing of the others. Two things do: the regularizer L^O, which compares all rows of a weight,
and rows that are cut themselves (transposed convolutions, one row for the whole tensor, tensor parallelism).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ...geometry import Layout
from ..orthogonality import orthogonality_grad
from .arithmetic import compute_dtype, unit_rows

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

_PLAIN = (Tensor, torch.nn.Parameter)
Step = Callable[[list[list[Any]], float], None]


def is_sharded(t: object) -> TypeGuard[DTensor]:
    """Whether ``t`` is a DTensor; the module of that class is not imported to find out."""
    if type(t) in _PLAIN:  # at every step and for every tensor
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(t, module.DTensor)


def local(t: Any) -> Any:
    """The part of ``t`` that lies on this device; ``t`` itself if it is no DTensor."""
    return t.to_local() if is_sharded(t) else t


def whole(t: Any) -> Any:
    """All of ``t``, gathered if it is a DTensor: to be called on every device."""
    return t.full_tensor() if is_sharded(t) else t


def on_local_rows(columns: Sequence[Sequence[Any]], layout: Layout, alpha: float, step: Step) -> None:
    """Let a step of plain tensors move DTensors as well.

    Args:
        columns: Parameters, then, if any, their gradients, without a loss scale and only read, then their state, of
            which each entry is a tensor or not.
        layout: How the parameters are read as rows.
        alpha: Weight of L^O.
        step: Moves the columns that it is given, plain tensors all, by their gradients and ``alpha`` times L^O's. Rows
            that are cut are gathered, moved by every device alike, and each keeps its part.
    """
    params = columns[0]
    if not any(map(is_sharded, params)):
        step([list(column) for column in columns], alpha)
        return
    plain: list[int] = []
    rows: list[int] = []
    cut: list[int] = []
    for i, p in enumerate(params):
        (plain if not is_sharded(p) else rows if rows_are_whole(p, layout) else cut).append(i)

    def some(indices: list[int], of: Callable[[Any], Any]) -> list[list[Any]]:
        return [[of(column[i]) for i in indices] for column in columns]

    if plain:
        step(some(plain, lambda t: t), alpha)
    for i in cut:
        gathered = some([i], whole)
        step(gathered, alpha)
        for number, (column, (moved,)) in enumerate(zip(columns, gathered, strict=True)):
            if number != 1 and is_sharded(column[i]):
                keep_part(column[i], moved)
    if rows and alpha:  # gathers, so a device without rows takes part as well
        grads = list(columns[1])
        for i in rows:
            grads[i] = local(grads[i]) + _orthogonality_term(params[i], alpha, layout)
        columns = [params, grads, *columns[2:]]
    # Copies apart from parts, which differ by device: lists on a CPU decide for several weights at once.
    for copies in (True, False):
        if own := [i for i in rows if local(params[i]).numel() and _is_copied(params[i]) == copies]:
            step(some(own, local), 0.0)
    # What is written into its part, autograd does not see on the DTensor.
    increment_version([p for p in params if is_sharded(p)])


def row_zeros(p: Tensor, layout: Layout, dtype: torch.dtype) -> Tensor:
    """Zeros with one value a row of ``p``, shape ``(rows,)``, cut as the rows of ``p`` are."""
    if is_sharded(p) and rows_are_whole(p, layout):
        here = local(p)
        return rows_like(p, here.new_zeros(layout.row_count(here), dtype=dtype), layout)
    return local(p).new_zeros(layout.row_count(stand_in(p)), dtype=dtype)


def _is_copied(p: DTensor) -> bool:
    """Whether every device has all of ``p``."""
    return local(p).numel() == p.numel()


def rows_are_whole(p: DTensor, layout: Layout) -> bool:
    """Whether no row of ``p`` lies on two devices; the answer is the same on all of them."""
    cuts = [
        (getattr(placement, "dim", None), p.device_mesh.size(i))
        for i, placement in enumerate(p.placements)
        if not placement.is_replicate() and p.device_mesh.size(i) > 1
    ]
    channels = layout.channels_per_row
    if not cuts:
        return True
    if channels is None or layout.row_dim != 0 or any(dim != 0 for dim, _ in cuts):
        return False
    return channels == 1 or (len(cuts) == 1 and -(-p.shape[0] // cuts[0][1]) % channels == 0)


def rows_like(p: DTensor, here: Tensor, layout: Layout) -> DTensor:
    """The DTensor with one entry or row for each row of ``p``, of which ``here`` are those on this device."""
    from torch.distributed.tensor import DTensor

    shape = torch.Size([layout.row_count(stand_in(p)), *here.shape[1:]])
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        here.contiguous(), p.device_mesh, p.placements, run_check=False, shape=shape, stride=stride
    )


def placed_as(p: Tensor, grad: Tensor) -> Tensor:
    """``grad``, cut as ``p`` is; one that is still to be summed over the devices is summed."""
    if is_sharded(p) and is_sharded(grad) and grad.placements != p.placements:
        return grad.redistribute(placements=p.placements)
    return grad


def keep_part(t: Tensor, moved: Tensor) -> None:
    """Write this device's part of ``moved`` into ``t``: all of it, if ``t`` is no DTensor."""
    local(t).copy_(local(_cut(t, moved)) if is_sharded(t) else moved)


def cut_as(p: Tensor, value: Any, group: Mapping[str, Any]) -> Any:
    """A whole state of ``p`` as `on_local_rows` keeps it; ``group`` is the param group that ``p`` is in."""
    if not is_sharded(p) or not isinstance(value, Tensor) or not value.dim():
        return value
    if value.shape == p.shape or ("row_dim" in group and rows_are_whole(p, Layout.of(group))):
        return _cut(p, value)
    return value


def stand_in(t: Tensor) -> Tensor:
    """A tensor of the shape of ``t``, to be looked at only."""
    return torch.empty(t.shape, device="meta") if is_sharded(t) else t


def _cut(p: DTensor, value: Tensor) -> DTensor:
    from torch.distributed.tensor import DTensor, Replicate

    everywhere = [Replicate()] * p.device_mesh.ndim
    spread = DTensor.from_local(value, p.device_mesh, everywhere, run_check=False)
    return spread.redistribute(placements=p.placements)


def _orthogonality_term(p: DTensor, alpha: float, layout: Layout) -> Tensor:
    """This device's rows of the gradient of L^O, in the shape of its part of ``p``."""
    here = local(p)
    y = unit_rows(layout.rows(here).to(compute_dtype(p.dtype), copy=True))
    among = whole(rows_like(p, y, layout))
    return layout.tensors(orthogonality_grad(y, alpha, among=among), here)[0]
