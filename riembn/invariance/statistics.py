"""Carries the running statistics of a trained network over to weight rows of unit length."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from riembn.invariance.granularity import rescaling
from riembn.invariance.twin import Edit, Twin, size

if TYPE_CHECKING:
    from riembn.invariance.report import Entry

_VALUES = 4096  # a channel that are looked at
_CONSTANT = 1e-24  # share of a channel's squares that is rounding
_MISFIT = 1e-3


@dataclass(frozen=True, eq=False)
class Carried:
    """Running statistics of one normalization, as they are and for unit rows.

    Attributes:
        module: Its name in the network.
        before: ``running_mean`` and ``running_var`` when they were read.
        after: What they become.
        gain: What its ``weight`` is multiplied by, because eps stays as it is; None if it has none.
    """

    module: str
    before: tuple[Tensor, Tensor]
    after: tuple[Tensor, Tensor]
    gain: Tensor | None


@dataclass(frozen=True, eq=False)
class Statistics:
    """What the running statistics of a network become when all its invariant weight rows get unit length.

    Attributes:
        norms: Those of every normalization that has any.
        change: How much the evaluation output on the example then still changes, relative to its size.
    """

    norms: tuple[Carried, ...]
    change: float

    def fit(self, model: nn.Module) -> bool:
        """Whether the network still has the statistics that were read."""
        return all(
            torch.equal(now.to(was), was)
            for norm in self.norms
            for now, was in zip(_buffers(model.get_submodule(norm.module)), norm.before, strict=True)
        )

    @torch.no_grad()
    def write(self, model: nn.Module) -> None:
        """Write them into the network, whose rows have unit length by now."""
        for norm in self.norms:
            module: Any = model.get_submodule(norm.module)
            for buffer, value in zip(_buffers(module), norm.after, strict=True):
                buffer.copy_(value)
            if norm.gain is not None:
                module.weight.mul_(_placed(norm.gain, module.weight))


def are_fresh(model: nn.Module) -> bool:
    """Whether there are running statistics, and none has seen any input: means are 0 and variances 1.

    Those of a normalization that is not torch's are buffers among others: then all of these are 0, or all are 1.
    """
    if norms := _norms(model).values():
        return all(not mean.any() and bool((var == 1).all()) for mean, var in map(_buffers, norms))
    others = [b for b in model.buffers() if b.is_floating_point() and b.numel()]
    return bool(others) and all(not b.any() or bool((b == 1).all()) for b in others)


def has_statistics(model: nn.Module) -> bool:
    """Whether there are running statistics that could be carried over."""
    return bool(_norms(model))


@torch.no_grad()
def carried_over(twin: Twin, entries: Iterable[Entry]) -> Statistics:
    """Measure what the input of every normalization does when the invariant rows get unit length.

    In training mode and without eps no normalization's output changes then, so each sees the effect of the
    rows that feed it, whatever lies between: :math:`x \\mapsto cx + d` in every channel, with ``d`` what a bias
    keeps. Hence the mean :math:`m \\mapsto cm + d` and the variance :math:`v \\mapsto c^2 v`.

    Two passes measure that, in which scales and shifts of normalizations are moved so that no channel is silent;
    two more compare the output in evaluation mode. Without such statistics it is these two alone.

    Args:
        twin: Of the network; left in evaluation mode.
        entries: What is known about its parameters.
    """
    norms = _norms(twin.model)
    names = {id(p): name for name, p in twin.parameters.items()}
    unit = _unit_rows(entries)
    lively: dict[str, Edit] = {
        names[id(p)]: partial(_move, float(shift))
        for module in norms.values()
        for shift, p in enumerate((module.bias, module.weight))
        if p is not None
    }
    twin.eps, twin.generic = False, False
    before, after = (_inputs(twin, norms, edits) if norms else {} for edits in (lively, {**lively, **unit}))
    twin.model.eval()
    twin.eps = True
    outputs, _ = twin.run()
    found = tuple(
        _carried(name, norms[name], x, after[name]) for name, x in before.items() if name in after
    )
    gains = {
        names[id(norms[c.module].weight)]: partial(_multiply, c.gain) for c in found if c.gain is not None
    }
    handles = [norms[c.module].register_forward_pre_hook(partial(_set_buffers, c.after)) for c in found]
    try:
        again, _ = twin.run({**unit, **gains})
    finally:
        for handle in handles:
            handle.remove()
    change = max((float((a - b).norm() / size(b)) for a, b in zip(again, outputs, strict=True)), default=0.0)
    return Statistics(found, change)


def _carried(name: str, module: Any, x: Tensor, y: Tensor) -> Carried:
    """From the inputs ``x`` and ``y``, shape ``(channels, values)``, before and after."""
    x_mean, y_mean = x.mean(1), y.mean(1)
    x, y = x - x_mean[:, None], y - y_mean[:, None]
    spread = x.square().sum(1)
    c = (x * y).sum(1) / spread
    misfit = (y - c[:, None] * x).square().sum(1) / y.square().sum(1)
    known = (spread > _CONSTANT * x_mean.square() * x.shape[1]) & (misfit < _MISFIT**2)
    c = torch.where(known, c, 1.0)  # of a constant channel nothing else is known
    d = y_mean - c * x_mean
    mean, var = (b.double() for b in _buffers(module))
    old, new, gain = var + module.eps, c**2 * var + module.eps, None
    if module.weight is None:
        new = (c**2 * old).clamp_min(module.eps)  # no weight to take up what eps does
    else:
        gain = (new / old).sqrt() / c
    return Carried(name, (mean, var), (c * mean + d, new - module.eps), gain)


def _unit_rows(entries: Iterable[Entry]) -> dict[str, Edit]:
    parameters = {e.name: e.parameter.detach() for e in entries if e.invariant}
    edits: dict[str, Edit] = {}
    for e in entries:
        if e.rows:
            names = [name for name in (e.name, e.partner) if name]
            length = e.layout.rows(*(parameters[name].double() for name in names)).norm(dim=1)
            edits |= rescaling(names, e.layout, torch.where(length > 0, length, 1.0).reciprocal())
    return edits


def _inputs(twin: Twin, norms: dict[str, Any], edits: dict[str, Edit]) -> dict[str, Tensor]:
    """What every normalization that runs is given, shape ``(channels, values)``."""
    seen: dict[str, list[Tensor]] = {name: [] for name in norms}
    handles = [module.register_forward_pre_hook(partial(_keep, seen[name])) for name, module in norms.items()]
    try:
        twin.run(edits)
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.cat(parts, 1) for name, parts in seen.items() if parts}


def _keep(seen: list[Tensor], module: Any, args: tuple[Any, ...]) -> None:
    x = args[0]
    channels = x.movedim(0 if x.dim() == 1 or x.shape[0] == module.num_features != x.shape[1] else 1, 0).flatten(1)
    stride = max(channels.shape[1] // _VALUES, 1) | 1
    seen.append(channels[:, ::stride].to(torch.float64, copy=True))


def _norms(model: nn.Module) -> dict[str, Any]:
    """Normalizations with running statistics."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _NormBase) and module.running_mean is not None and module.running_var is not None
    }


def _buffers(module: Any) -> Sequence[Tensor]:
    return module.running_mean, module.running_var


def _set_buffers(values: Sequence[Tensor], module: Any, _: Any) -> None:
    for buffer, value in zip(_buffers(module), values, strict=True):
        buffer.copy_(value)


def _move(center: float, parameter: Tensor) -> None:
    noise = torch.rand(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    parameter.copy_(center + 0.5 * (noise - 0.5))


def _multiply(gain: Tensor, parameter: Tensor) -> None:
    parameter.mul_(gain)


def _placed(value: Tensor, parameter: Tensor) -> Tensor:
    """``value`` on the parameter's device, and in parts as the parameter is."""
    value = value.to(parameter.device, parameter.dtype)
    if hasattr(parameter, "placements"):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(parameter, DTensor)
        return distribute_tensor(value, parameter.device_mesh, parameter.placements)
    return value
