"""The fused step on a CUDA device: one pass over weight, gradient and momentum, in Triton.

A step reads weight, gradient and momentum once and writes weight and momentum once: 20 bytes a float32 parameter for
SGD-G, and 20 bytes and 8 a row for Adam-G; 12 for PSI-SGD without momentum. All weights of one call share a few
launches, one for each size of row, which overlap where the device can do that; nothing waits for the device, so a step
can be captured in a CUDA graph. Tiles were chosen by timing on an H200, and so that no kernel spills registers. The
first use on a device is checked (riembn/optim/rows/first_use.py).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from itertools import chain, combinations
from operator import is_not
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..geometry import Layout
from .strides import Strides, strides

LONGEST = 2**17
"""Entries of the longest row taken: one program walks along a row, and lists of tensors use the whole device."""
TAKEN = (
    f"float32, bfloat16 or float16 on an NVIDIA GPU, rows of up to {LONGEST:,} entries, and Triton installed"
)


class Tile(NamedTuple):
    """How rows of up to ``longest`` entries are read: ``rows`` a program in blocks of ``columns`` by so many warps."""

    longest: float
    columns: int
    rows: int
    warps: int
    kernel: str = ""  # what follows in its name

    @property
    def width(self) -> int:
        """Entries that are held for a row."""
        return 3 * self.columns if self.kernel == "_wide" else self.columns


_WHOLE = [Tile(64, 64, 16, 4), Tile(256, 256, 4, 4), Tile(1024, 1024, 1, 1), Tile(2048, 2048, 1, 4)]
_WHOLE += [Tile(4096, 4096, 1, 4)]
_THREE = [Tile(1536, 512, 1, 2, "_wide"), Tile(3072, 1024, 1, 4, "_wide"), Tile(6144, 2048, 1, 8, "_wide")]
_LONG = Tile(math.inf, 2048, 1, 4, "_long")
TILES = {"manifold_step": [*sorted([*_WHOLE, *_THREE]), _LONG], "psi_step": [*_WHOLE, _LONG]}
"""Of each kernel, from short rows to long ones."""
FEW = 2**20
"""Entries that take less time than a launch: with so few of their own, rows are read in a tile for longer ones."""
_HELD = 4  # times as many may be held there: short rows take a program each

_TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def takes(p: Tensor, layout: Layout) -> bool:
    """Whether the fused step can work on ``p``: on a CUDA device, its rows two strides or fewer each way."""
    return (
        p.is_cuda
        and p.dtype in _TYPES
        and type(p) in (Tensor, torch.nn.Parameter)  # a subclass (DTensor) may keep its data elsewhere
        and not p.is_neg()  # a view of the negative, which only torch knows
        and _fits(p, layout)
        and not unfit(p.device)
    )


def sgd_g(
    columns: Sequence[Sequence[Tensor]],
    layout: Layout,
    lr: float | Tensor,
    momentum: float,
    grad_clip: float | None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    *,
    tables: Tables | None = None,
) -> Tables | None:
    """One step of SGD-G in place; all on one device, and `takes` true of every weight.

    Args:
        columns: Weights, gradients, momentum.
        layout: How the weights are read as rows.
        lr: A number, or a one-element tensor on the device, which is read there.
        momentum, grad_clip: As the optimizer's.
        grad_scale: A one-element tensor that the gradients are divided by.
        found_inf: A one-element tensor; nothing changes where it is not zero.
        tables: What an earlier step of tensors of these shapes, strides, types and addresses returned; then the tensors
            are asked nothing.

    Returns:
        Tables for steps of tensors that lie where these do; None where there can be none.
    """
    options = _scalars(momentum, 0.0, 0.0, 0.0, grad_clip)
    return _launch("manifold_step", columns, layout, lr, grad_scale, found_inf, options,
                   tables, ADAM=False, CLIPPED=grad_clip is not None)  # fmt: skip


def adam_g(
    columns: Sequence[Sequence[Tensor]],
    layout: Layout,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    grad_clip: float | None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    *,
    tables: Tables | None = None,
) -> Tables | None:
    """One step of Adam-G in place; ``columns``: weights, gradients, both moments, step counts; else as `sgd_g`.

    A count is a float32 number on the device, this step included.
    """
    options = _scalars(*betas, 1 - betas[1], eps, grad_clip)
    *others, exp_avg_sqs, steps = columns
    one_by_one = [*exp_avg_sqs] if tables else [v.contiguous() for v in exp_avg_sqs]
    tables = _launch("manifold_step", [*others, one_by_one, steps], layout, lr, grad_scale, found_inf, options,
                     tables, ADAM=True, CLIPPED=grad_clip is not None)  # fmt: skip
    if any(map(is_not, exp_avg_sqs, one_by_one)):
        torch._foreach_copy_([*exp_avg_sqs], one_by_one)
        return None
    return tables


def psi_sgd(
    columns: Sequence[Sequence[Tensor]],
    layout: Layout,
    lr: float | Tensor,
    momentum: float,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    *,
    tables: Tables | None = None,
) -> Tables | None:
    """One step of PSI-SGD in place; as `sgd_g`, but without momentum there is no column of it."""
    return _launch("psi_step", columns, layout, lr, grad_scale, found_inf, (momentum,),
                   tables, MOMENTUM=len(columns) > 2)  # fmt: skip


def _scalars(
    decay: float, decay_second: float, keep_second: float, eps: float, grad_clip: float | None
) -> tuple[float, ...]:
    """The kernels' scalars from ``decay`` on, what cancels worked out in float64."""
    logs = [math.log(beta) if beta else -math.inf for beta in (decay, decay_second)]
    bound = math.inf if grad_clip is None else grad_clip
    return decay, 1 - decay, logs[0], decay_second, keep_second, logs[1], eps, bound


def _launch(name: str, columns: Sequence[Sequence[Tensor]], *arguments: Any, **flags: Any) -> Tables | None:
    """`_launch_here` with the weights' device as the current one, which streams and captures are asked of."""
    device = columns[0][0].device
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return _launch_here(name, columns, *arguments, **flags)
    with torch.cuda.device(device):
        return _launch_here(name, columns, *arguments, **flags)


def _launch_here(
    name: str,
    columns: Sequence[Sequence[Tensor]],
    layout: Layout,
    lr: float | Tensor,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    scalars: tuple[float, ...],
    tables: Tables | None,
    **flags: bool,
) -> Tables | None:
    """Launch a kernel over all rows; ``columns``: weights, gradients, momentum, second moments, step counts."""
    params, device = columns[0], columns[0][0].device
    used: list[list[Tensor]] = []
    stream, captured = _stream_number(device), capturing(device)
    lasting = not captured  # whether the tables serve another step
    if tables is None:
        grads = [g.resolve_neg() for g in columns[1]]
        lasting = lasting and not any(map(is_not, grads, columns[1]))
        columns = params, grads, *columns[2:]
        plan = _plan(device, name, columns, layout)
        used = [list(column) for column in columns]
        for c, i in plan.foreign:
            p = params[i]
            alike = torch.empty_strided(p.shape, p.stride(), dtype=plan.dtypes[c][i], device=device)
            used[c][i] = alike.copy_(columns[c][i])
        tables = _tables(plan, [[t.data_ptr() for t in column] for column in used], device)
    plan = tables.plan
    shared = [_at(device, x) for x in (lr, grad_scale, found_inf)]
    numbers = [float(x) for x in scalars]  # Triton would compile for every integer anew
    flags["LR_TENSOR"] = isinstance(lr, Tensor)
    variant = name, *map(_kind_of, shared), *flags.values()
    for number, (batch, lines) in enumerate(zip(plan.batches, tables.use(stream, captured), strict=True)):
        launch = plan.launches.get((number, lines.aligned, variant))
        if launch is None:
            place = _place(device, number, len(plan.batches))
            launch = _first_launch(name, batch, lines, place, *shared, *numbers, **flags)
            plan.launches[number, lines.aligned, variant] = launch
        else:
            launch(stream, batch, lines, *shared, *numbers)
    for c, i in plan.foreign:
        if c >= 2:
            columns[c][i].copy_(used[c][i])
    # Autograd does not see what a kernel writes: weights, momentum, second moments.
    increment_version([*chain(params, *columns[2:4])])
    return tables if lasting and not plan.foreign else None


def _first_launch(
    name: str, batch: _Batch, lines: _Lines, place: int, *given: Any, **flags: bool
) -> Callable[..., None]:
    """Compile a kernel, or find it compiled, and launch it; returns what launches it on arguments of the same kinds.

    A call of a compiled kernel takes a few microseconds, and is given addresses: of each tensor it would ask the driver
    where it is. Of a function that Triton compiles where it has to it takes tens, since that looks at every argument.
    """
    kernels: Any = _kernels()
    function, grid = getattr(kernels, name + batch.tile.kernel), (batch.programs.numel(), 1, 1)
    weights, gradients = (getattr(kernels.tl, name) for name in batch.kind.types)
    constants = dict(
        W=weights, G=gradients, DENSE=batch.kind.dense, UNIT=batch.kind.unit if lines.aligned else 1,
        BLOCK_ROWS=batch.tile.rows, BLOCK_COLUMNS=batch.tile.columns, PLACE=place, **flags,
    )  # fmt: skip
    options = {"num_warps": batch.tile.warps, "enable_fp_fusion": True}
    if place > 1:
        options["launch_pdl"] = True

    def by_function(stream: int, batch: _Batch, lines: _Lines, *given: Any) -> Any:
        return function[grid](batch.programs, batch.sizes, lines.table, *given, **constants, **options)

    compiled = by_function(0, batch, lines, *given)  # on the current stream
    if compiled is None:  # interpreted
        return by_function
    run, rest = compiled[grid], (None,) * len(constants)  # those are compiled in
    return lambda stream, batch, lines, *given: run(*batch.at, lines.at, *given, *rest, stream=stream)


def _place(device: torch.device, number: int, launches: int) -> int:
    """1 for the first launch of a step, 2 for those that begin before the last one has ended; 0 if none can.

    All of a step are of different rows, so none needs to wait for another. That fills the end of each, when ever fewer
    programs are left (NVIDIA's programmatic dependent launch, from compute capability 9.0).
    """
    if launches == 1 or device.type != "cuda" or torch.cuda.get_device_capability(device) < (9, 0):
        return 0
    return 2 if number else 1


def _kind_of(x: Any) -> object:
    """What of an argument a compiled kernel depends on."""
    return (x.dtype, x.data_ptr() % 16 == 0) if isinstance(x, Tensor) else type(x)


@functools.cache
def _kernels() -> Any:
    """The module of the kernels, or None where Triton is not installed."""
    try:
        from . import rows_triton
    except ImportError:
        return None
    return rows_triton


refused: dict[torch.device, str] = {}
"""Devices on which the kernels did not do what they should, and what they did."""


def unfit(device: torch.device) -> str:
    """Why the kernels are not used on a CUDA device; empty if they are."""
    return refused.get(device) or _unfit(device)


@functools.cache
def _unfit(device: torch.device) -> str:
    if torch.version.hip is not None or torch.cuda.get_device_capability(device) < (7, 0):
        return "no NVIDIA GPU of compute capability 7.0 or more"
    return "" if _kernels() is not None else "Triton is not installed"


def _fits(p: Tensor, layout: Layout) -> bool:
    found = strides(p.shape, p.stride(), layout)
    return found is not None and found.fan_in <= LONGEST


class _Kind(NamedTuple):
    """What tensors have in common that one launch can work on."""

    tile: int  # its number: from short rows to long ones
    dense: bool
    unit: int  # all sizes are multiples of it
    types: tuple[str, str]  # of weights and gradients


class _Batch(NamedTuple):
    """What one launch works on."""

    members: list[int]  # numbers of the tensors
    programs: Tensor
    sizes: Tensor
    at: tuple[int, int]  # the addresses of those two
    tile: Tile
    kind: _Kind


class _Plan(NamedTuple):
    """What a list of weights needs at every step, whatever the addresses."""

    batches: list[_Batch]
    foreign: list[tuple[int, int]]  # column and number of what lies in another order or type than its weight
    dtypes: list[list[torch.dtype]]
    addresses: dict[tuple[int, ...], Tables]
    launches: dict[Any, Callable[..., None]]  # of what is compiled
    filled_on: torch.cuda.Stream | None


_plans: dict[Any, _Plan] = {}
_MANY = 64  # plans, and tables of addresses a plan, that are kept; a training loop needs one of each


def _plan(device: torch.device, name: str, columns: Sequence[Sequence[Tensor]], layout: Layout) -> _Plan:
    # Every step asks, for every tensor: lists, which are faster than generators.
    params, *others = columns[:3]
    kinds = [(p.shape, p.stride(), p.dtype) for p in params]
    kept = [[(t.stride(), t.dtype) for t in column] for column in others]
    key = device, layout, name, *TILES[name], *kinds, *(kind for column in kept for kind in column)
    if key not in _plans:
        if capturing(device):
            raise RuntimeError(
                "riembn: the first fused step of these weights is inside a CUDA graph capture; take one or more "
                "steps before it, as for any torch optimizer."
            )
        while len(_plans) >= _MANY:
            _plans.pop(next(iter(_plans)))
        _plans[key] = _make_plan(device, TILES[name], columns[:3], layout)
    return _plans[key]


def _make_plan(
    device: torch.device, tiles: list[Tile], columns: Sequence[Sequence[Tensor]], layout: Layout
) -> _Plan:
    foreign: list[tuple[int, int]] = []
    dtypes = [[t.dtype for t in column] for column in columns]
    by_launch: dict[_Kind, list[tuple[int, Strides]]] = {}
    for i, (p, *rest) in enumerate(zip(*columns, strict=True)):
        for c, t in enumerate(rest, start=1):
            if c == 2 or t.dtype not in _TYPES:
                dtypes[c][i] = torch.float32
            if not _same_order(p, t) or dtypes[c][i] != t.dtype:
                foreign.append((c, i))
        found = strides(p.shape, p.stride(), layout)
        assert found is not None  # `takes` has said so
        types = _TYPES[p.dtype], _TYPES[dtypes[1][i]]
        unit = _unit(types)
        if not (found.dense and found.fan_in % unit == 0 and found.row_stride % unit == 0):
            unit = 1
        number = next(number for number, tile in enumerate(tiles) if found.fan_in <= tile.longest)
        by_launch.setdefault(_Kind(number, found.dense, unit, types), []).append((i, found))
    _join_few(by_launch, tiles)
    batches = []
    for kind, members in sorted(by_launch.items(), reverse=True):  # what is left at the end is of short rows
        tile = tiles[kind.tile]
        if kind.unit == 1:  # an address an entry: fewer entries a thread, to stay in registers
            tile = tile._replace(warps=min(2 * tile.warps, 32))
        blocks = [-(-g.rows // tile.rows) for _, g in members]
        firsts = [sum(blocks[:k]) for k in range(len(blocks))]
        sizes = [[g.rows, g.fan_in, first, *g[2:], 0] for (_, g), first in zip(members, firsts, strict=True)]
        programs = torch.repeat_interleave(torch.arange(len(blocks)), torch.tensor(blocks))
        tables = _to_device(programs.int(), device), _to_device(torch.tensor(sizes), device)
        at = tables[0].data_ptr(), tables[1].data_ptr()
        batches.append(_Batch([i for i, _ in members], *tables, at, tile, kind))
    return _Plan(batches, foreign, dtypes, {}, {}, _current_stream(device))


def _join_few(by_launch: dict[_Kind, list[tuple[int, Strides]]], tiles: list[Tile]) -> None:
    """Let those with few entries in all go with the next longer rows: a launch costs as much as a million.

    Rows that start anywhere go only with few others, since these are then read entry by entry, too.
    """

    def few(kind: _Kind, tile: int) -> bool:
        read = sum(g.rows * g.fan_in for _, g in by_launch[kind])
        held = sum(g.rows * tiles[tile].width for _, g in by_launch[kind])
        return read < FEW and held < _HELD * FEW

    def go_together(kind: _Kind, longer: _Kind) -> bool:
        alike = (kind.dense, kind.types) == (longer.dense, longer.types)
        return alike and few(kind, longer.tile) and (kind.unit == longer.unit or few(longer, longer.tile))

    while pair := next((two for two in combinations(sorted(by_launch), 2) if go_together(*two)), None):
        kind, longer = pair
        members = by_launch.pop(kind) + by_launch.pop(longer)
        by_launch.setdefault(longer._replace(unit=min(kind.unit, longer.unit)), []).extend(members)


def _unit(types: tuple[str, str]) -> int:
    """Entries in 16 bytes of the smaller type."""
    return 4 if types == ("float32", "float32") else 8


def _same_order(p: Tensor, t: Tensor) -> bool:
    """Whether entries of ``t`` lie as those of ``p``; the stride of a dimension of size 1 means nothing."""
    return all(a == b for n, a, b in zip(p.shape, p.stride(), t.stride(), strict=True) if n > 1)


class _Lines(NamedTuple):
    """Where the tensors of one launch are."""

    table: Tensor
    at: int  # its own address
    aligned: bool  # whether all of them start on 16 bytes


class Tables:
    """Where the tensors of a step are, on the device: never changed once made, so that a graph can keep on reading it.

    Made by `_tables`, of a list of addresses for each column.
    """

    def __init__(self, plan: _Plan, columns: list[list[int]], device: torch.device) -> None:
        lines = list(zip(*columns, strict=True))
        order = [i for batch in plan.batches for i in batch.members]
        padding = [0] * (6 - len(columns))
        table = _to_device(torch.tensor([[*lines[i], *padding] for i in order]), device)
        self._lines = [
            _Lines(part, part.data_ptr(), all(at % 16 == 0 for i in batch.members for at in lines[i][:3]))
            for batch, part in zip(
                plan.batches, table.split([len(batch.members) for batch in plan.batches]), strict=True
            )
        ]
        self._table, self._columns, self.plan = table, columns, plan
        self._filled_on = _current_stream(device)

    def with_gradients(self, addresses: list[int]) -> Tables:
        """Tables for the same tensors with gradients like those before, but elsewhere."""
        weights, _, *states = self._columns
        return _tables(self.plan, [weights, addresses, *states], self._table.device)

    def use(self, stream: int, captured: bool) -> list[_Lines]:
        """The tables, fit to be read on the current stream, whose number is ``stream``."""
        if captured:
            _captured.add(self)  # for good: the graph may read it at any time
            return self._lines
        for filled_on, of_plan in ((self._filled_on, False), (self.plan.filled_on, True)):
            if filled_on is not None and filled_on.cuda_stream != stream:
                current = torch.cuda.current_stream(self._table.device)
                current.wait_stream(filled_on)
                tables = [table for batch in self.plan.batches for table in (batch.programs, batch.sizes)]
                for table in tables if of_plan else [self._table]:
                    table.record_stream(current)
        return self._lines


_captured: set[Tables] = set()


def _tables(plan: _Plan, columns: list[list[int]], device: torch.device) -> Tables:
    key = tuple(chain.from_iterable(columns))
    found = plan.addresses.get(key)
    if found is None:
        found = Tables(plan, columns, device)
        if not capturing(device):  # what a capture makes is filled when the graph runs, not before
            while len(plan.addresses) >= _MANY:
                plan.addresses.pop(next(iter(plan.addresses)))
            plan.addresses[key] = found
    return found


def _to_device(table: Tensor, device: torch.device) -> Tensor:
    """The table on the device, without waiting; a capture records the copy."""
    if device.type != "cuda":
        return table
    pinned = table.pin_memory()
    if capturing(device):
        _sources.append(pinned)  # for good: the graph copies from it whenever it runs
    return pinned.to(device, non_blocking=True)


_sources: list[Tensor] = []


def _current_stream(device: torch.device) -> torch.cuda.Stream | None:
    return torch.cuda.current_stream(device) if device.type == "cuda" else None


def _stream_number(device: torch.device) -> int:
    """The current stream's number, as Triton takes it; an object for it would take longer to make."""
    return torch._C._cuda_getCurrentRawStream(device.index) if device.type == "cuda" else 0


def capturing(device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    if device.index == torch.cuda.current_device():
        return torch.cuda.is_current_stream_capturing()
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def _at(device: torch.device, x: Any) -> Any:
    """A tensor on the device, a number as a float, None as it is."""
    if isinstance(x, Tensor):
        return x if x.device == device else x.to(device, non_blocking=True)
    return None if x is None else float(x)

