"""What does an optimizer step cost, in seconds, in bytes moved and in memory, beside torch's own and its peers'?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .contestants import BASES, CONTESTANTS, FUSED, Contestant
from .interleave import Contest, contest, stopwatch
from .intervals import quartiles
from .machine import free_bytes
from .memory import page_faults, peak_bytes, state_bytes
from .parameters import STACKS, ParameterSet, parameter_set

COPY, IN_PLACE = "copy", "in place"
_STREAM = {"cpu": 2**25, "cuda": 2**28}  # entries: far more than a cache holds


def measure_set(
    name: str, device: torch.device, *, only: Sequence[str] | None = None, quick: bool = False, **options: Any
) -> dict[str, Any]:
    """Time every contestant on one parameter set, in turns with two passes over a large tensor.

    Args:
        name: As for `parameter_set`.
        device: Where the weights lie.
        only: Names of the contestants; None for all, of which a stack takes the fused ones.
        quick: Small passes, to see that everything works.
        options: As for `contest`.

    Returns:
        What the record keeps of the set. Who could not take part stands under ``skipped``, with the reason; the whole
        set is skipped if memory does not allow it, or torchvision is missing.
    """
    try:
        weights_of = parameter_set(name)
    except ImportError as error:
        return {"name": name, "skipped": [{"name": name, "why": _line(error)}], "results": []}
    names = only or (FUSED if name in STACKS else tuple(CONTESTANTS))
    chosen = [CONTESTANTS[one] for one in names]
    entries = entries_of(device, quick)
    told: dict[str, Any] = {
        "name": name,
        "tensors": len(weights_of.shapes),
        "parameters": weights_of.parameters,
        "rows": weights_of.rows,
        "longest_row": weights_of.longest_row,
        "results": [],
        "skipped": [],
    }
    needed, free = _needed(weights_of, chosen) + 8 * entries, free_bytes(device)
    if needed > 0.9 * free:
        why = f"needs {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free"
        return {**told, "skipped": [{"name": name, "why": why}]}

    weights = weights_of.weights(device)
    grads = weights_of.gradients(weights)
    optimizers: dict[str, Any] = {}
    memory: dict[str, dict[str, int]] = {}
    for one in chosen:
        try:
            optimizer = one.build(weights, grads)
            optimizer.step()
            memory[one.name] = _memory(optimizer, device)
        except (ImportError, RuntimeError, TypeError, ValueError) as error:
            told["skipped"].append({"name": one.name, "why": _line(error)})
        else:
            optimizers[one.name] = optimizer
    del weights
    runners: dict[str, Callable[[], object]] = {one: optimizers[one].step for one in optimizers}
    runners |= streams(entries, device)
    bases = [base for base in BASES if base in runners]
    found = contest(runners, bases, company=(COPY, IN_PLACE), measure=stopwatch(device), **options)
    told |= {"rounds": found.rounds, "seconds": round(found.spent, 1)}
    told["bandwidth"] = {
        stream: quartiles([8 * entries / t / 1e9 for t in found.seconds[stream].values()])
        for stream in (COPY, IN_PLACE)
    }
    told["results"] = [
        _result(CONTESTANTS[one], found, weights_of.parameters, entries) | memory[one] for one in optimizers
    ]
    return told


def _result(one: Contestant, found: Contest, parameters: int, entries: int) -> dict[str, Any]:
    seconds, moved = list(found.seconds[one.name].values()), one.bytes_per_parameter * parameters
    told = {
        "name": one.name,
        "method": one.method,
        "library": one.library,
        "path": one.path,
        "seconds": quartiles(seconds),
        "rounds": len(seconds),
        "calls_a_round": found.calls[one.name],
        "bytes_per_parameter": one.bytes_per_parameter,
        "gb_per_s": moved / quartiles(seconds)["median"] / 1e9,
        "ratios": {base: found.ratio(one.name, base).told() for base in found.bases},
        "narrow": one.name in found.narrow,
    }
    for stream in (COPY, IN_PLACE):
        share = found.ratio(one.name, stream).into(moved / (8 * entries))
        told[f"share_of_{stream.replace(' ', '_')}"] = share.told()
    return told


def entries_of(device: torch.device, quick: bool) -> int:
    """Of the tensors that are passed over."""
    return 2**20 if quick else _STREAM[device.type]


def streams(entries: int, device: torch.device) -> dict[str, Callable[[], object]]:
    """Two passes that move 8 bytes an entry: one to other memory, one in place, as a step does."""
    source, target = (torch.ones(entries, device=device) for _ in range(2))
    return {COPY: lambda: target.copy_(source), IN_PLACE: lambda: source.mul_(1.0)}


def _memory(optimizer: Any, device: torch.device) -> dict[str, int]:
    return {
        "extra_bytes": peak_bytes(optimizer.step, device),
        "state_bytes": state_bytes(optimizer),
        "page_faults": page_faults(optimizer.step),
    }


def _needed(weights_of: ParameterSet, chosen: Sequence[Contestant]) -> int:
    """Bytes: weights and gradients once, each contestant's own weights and buffers, the largest temporaries."""
    buffers = sum(4 + (one.bytes_per_parameter - 12) // 2 for one in chosen)
    temporaries = 16 if any(one.path != "fused" for one in chosen) else 0
    return weights_of.parameters * (8 + buffers + temporaries)


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
