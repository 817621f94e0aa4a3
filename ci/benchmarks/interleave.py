"""How are two programs compared on a machine that is never quite quiet? In turns, and by the ratio within each turn."""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from .intervals import Interval, median_interval

Run = Callable[[], object]
Stopwatch = Callable[[Run, int], float]
"""Seconds that one of so many calls takes."""


@dataclass
class Contest:
    """The times of each contestant, by the number of the round they were taken in."""

    bases: tuple[str, ...]
    seconds: dict[str, dict[int, float]]
    calls: dict[str, int]
    rounds: int = 0
    spent: float = 0.0
    narrow: set[str] = field(default_factory=set)  # whose ratios are all known well enough

    def ratio(self, name: str, base: str) -> Interval:
        """How many times as long as ``base`` a contestant takes, from the rounds that both took part in."""
        own, other = self.seconds[name], self.seconds[base]
        return median_interval([own[turn] / other[turn] for turn in own if turn in other])


def contest(
    runners: Mapping[str, Run],
    bases: Sequence[str],
    *,
    company: Sequence[str] = (),
    width: float = 0.05,
    min_rounds: int = 7,
    limit: float = math.inf,
    call_seconds: float = 0.005,
    measure: Stopwatch | None = None,
    clock: Callable[[], float] = time.monotonic,
    seed: int = 0,
) -> Contest:
    """Time all runners in turns until each one's ratio to each base is known.

    In every round all who take part run once, in a new random order, so that what disturbs the machine for longer
    than a round disturbs all alike. A contestant leaves when the intervals of its ratios are narrow. The bases stay
    until the last one has left.

    Args:
        runners: What to time; each is called twice before, for what only first calls do.
        bases: Names of those that all are compared with.
        company: Names of those that take part in every round and are compared with none.
        width: A ratio's interval, relative to the ratio, at which a contestant may leave.
        min_rounds: Fewest rounds of each.
        limit: Seconds after which no further round begins; ``narrow`` then says who was done.
        call_seconds: A runner faster than that is called several times a round.
        measure: How a time is taken; by default with `stopwatch` on the CPU.
        clock: Seconds since some moment, for ``limit``.
        seed: Of the random order.

    Raises:
        ValueError: If a name is none of the runners'.
    """
    if unknown := [name for name in (*bases, *company) if name not in runners]:
        raise ValueError(f"contest: {unknown[0]!r} is not among the runners {', '.join(runners)}.")
    measure, order, started = measure or stopwatch(torch.device("cpu")), random.Random(seed), clock()
    found = Contest(tuple(bases), {name: {} for name in runners}, {}, narrow=set(company))
    always = {*bases, *company}
    for name, run in runners.items():
        measure(run, 1)
        found.calls[name] = min(100, max(1, math.ceil(call_seconds / max(measure(run, 1), 1e-9))))
    collecting = gc.isenabled()
    gc.disable()
    try:
        while found.rounds < min_rounds or len(found.narrow) < len(runners):
            if found.rounds and clock() - started >= limit:
                break
            present = [name for name in runners if name in always or name not in found.narrow]
            order.shuffle(present)
            for name in present:
                found.seconds[name][found.rounds] = measure(runners[name], found.calls[name])
            found.rounds += 1
            if found.rounds >= min_rounds:
                found.narrow |= {name for name in present if _is_narrow(found, name, width)}
            gc.collect(0)
    finally:
        if collecting:
            gc.enable()
    found.spent = clock() - started
    return found


def _is_narrow(found: Contest, name: str, width: float) -> bool:
    return all(found.ratio(name, base).width <= width for base in found.bases if base != name)


def stopwatch(device: torch.device) -> Stopwatch:
    """Wall time on a CPU; on a GPU the time between two events in its queue, gaps between kernels included."""
    if device.type != "cuda":

        def wall(run: Run, calls: int) -> float:
            start = time.perf_counter()
            for _ in range(calls):
                run()
            return (time.perf_counter() - start) / calls

        return wall

    def queue(run: Run, calls: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        for _ in range(calls):
            run()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1000 / calls

    return queue
