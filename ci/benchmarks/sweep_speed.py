"""How much sooner is a sweep done with two workers than with one?"""

from __future__ import annotations

import tempfile
import time
from typing import Any

import torch

import riembn
from riembn.experiment.sweep import grid

__all__ = ["measure_sweep"]


def measure_sweep(device: torch.device, *, quick: bool = False) -> dict[str, Any]:
    """24 smoke runs, one thread each, by one process and by two, in the order one, two, two, one.

    Starting the workers counts. So few repetitions have no interval: the ratio is that of the mean times, its ends
    are the smallest and the largest of any two times.

    Args:
        device: Where runs are trained.
        quick: Two runs, once each.
    """
    runs = 2 if quick else 24
    start = riembn.preset("vgg-13/cifar10/sgd-g", profile="smoke", **({"epochs": 1} if quick else {}))
    configs = grid(start, seed=range(runs))
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for workers in (1, 2) if quick else (1, 2, 2, 1):
        with tempfile.TemporaryDirectory() as store:
            began = time.perf_counter()
            riembn.sweep(configs, store=store, n_jobs=workers, device=str(device), progress=False)
            seconds[workers].append(time.perf_counter() - began)
    one, two = seconds[1], seconds[2]
    return {
        "runs": runs,
        "seconds": {str(workers): times for workers, times in seconds.items()},
        "speedup": {
            "median": sum(one) / sum(two),
            "low": min(one) / max(two),
            "high": max(one) / min(two),
        },
    }
