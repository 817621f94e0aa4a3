"""How much sooner is a sweep done with two workers than with one?"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from .intervals import median_interval

_TIMED = """
import json, sys, tempfile, time
import riembn
from riembn.experiment import grid

workers, runs, device, changes = json.loads(sys.argv[1])
configs = grid(riembn.preset("vgg-13/cifar10/sgd-g", profile="smoke", **changes), seed=range(runs))
seconds = []
for _ in range(2):
    with tempfile.TemporaryDirectory() as store:
        began = time.perf_counter()
        riembn.sweep(configs, store=store, n_jobs=workers, device=device, progress=False)
        seconds.append(time.perf_counter() - began)
print(json.dumps(seconds))
"""


def measure_sweep(
    device: torch.device,
    *,
    quick: bool = False,
    rounds: int = 7,
    limit: float = math.inf,
    timed: Callable[[int, int, str, dict[str, Any]], list[float]] | None = None,
) -> dict[str, Any]:
    """24 smoke runs, one thread each, by one process and by two; seven times in turns, each in a fresh interpreter.

    Two ratios are told: of the first sweep of an interpreter, where starting the workers and what a process imports at
    its first run count, and of the next sweep, for which the workers are there.

    Args:
        device: Where runs are trained.
        quick: Two runs, once each.
        rounds: How often, at most.
        limit: Seconds after which no further round begins.
        timed: Seconds of an interpreter's first and second sweep, by workers, runs, device and changes to the preset.
    """
    runs, rounds, changes = (2, 1, {"epochs": 1}) if quick else (24, rounds, {})
    timed = timed or _timed
    seconds: dict[str, dict[str, list[float]]] = {name: {"1": [], "2": []} for name in ("first", "next")}
    began = time.monotonic()
    for number in range(rounds):
        if number and time.monotonic() - began >= limit:
            rounds = number
            break
        for workers in (1, 2) if number % 2 == 0 else (2, 1):
            for values, told in zip(
                seconds.values(), timed(workers, runs, str(device), changes), strict=True
            ):
                values[str(workers)].append(told)
    return {
        "runs": runs,
        "rounds": rounds,
        "seconds": seconds,
        "speedup": {
            name: median_interval([one / two for one, two in zip(by["1"], by["2"], strict=True)]).told()
            for name, by in seconds.items()
        },
    }


def _timed(workers: int, runs: int, device: str, changes: dict[str, Any]) -> list[float]:
    asked = json.dumps([workers, runs, device, changes])
    done = subprocess.run(
        [sys.executable, "-c", _TIMED, asked], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])
