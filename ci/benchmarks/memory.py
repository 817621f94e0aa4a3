"""How much memory does a step take, beyond weights, gradients and state?"""

from __future__ import annotations

import os
import resource
import statistics
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Most bytes of torch's allocator that a call holds at once, above what was held before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with _silent(), torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile:
        run()
    tree = profile.profiler.kineto_results.experimental_event_tree()
    changes = [
        (event.start_time_ns, event.extra_fields.alloc_size)
        for event in _all(tree)
        if event.tag.name == "Allocation"
    ]
    held = peak = 0
    for _, size in sorted(changes, key=lambda change: change[0]):
        held += size
        peak = max(peak, held)
    return peak


def _all(events: Iterable[Any]) -> Iterator[Any]:
    for event in events:
        yield event
        yield from _all(event.children)


@contextmanager
def _silent() -> Iterator[None]:
    """Without what the profiler's C++ part says of itself on standard error."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def state_bytes(optimizer: Any) -> int:
    """Bytes of the tensors that an optimizer keeps between steps."""
    tensors = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
    return sum(t.numel() * t.element_size() for t in tensors)


def page_faults(run: Callable[[], object], calls: int = 5) -> int:
    """Pages that the system had to hand to this process during a call: the median of a few, as the heap may differ."""

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        run()
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    return statistics.median_low([faults() for _ in range(calls)])
