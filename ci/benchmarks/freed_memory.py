"""What does a training step on a CPU lose where the C library gives freed memory back to the system?"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import torch

from riembn.training.freed_memory import DECIDE, keep_freed_memory

from .intervals import median_interval, quartiles
from .loop_overhead import laptop_run


def measure_freed_memory(*, quick: bool = False, rounds: int = 9) -> dict[str, Any] | None:
    """An epoch's steps as glibc frees memory by default, against `keep_freed_memory`, in processes of their own.

    The run is that of `measure_loop`. Where tensors come to lie differs from process to process, and with it how much
    is given back: hence new ones for each round.

    Args:
        quick: A twentieth of the images, once each.
        rounds: How often.

    Returns:
        Seconds of an epoch's steps but the first, pages got anew a step, and the ratio; None where the C library is
        another.
    """
    size, rounds = (512, 1) if quick else (10_000, rounds)
    plain = {name: value for name, value in os.environ.items() if name not in DECIDE}
    told: dict[str, list[dict[str, float]]] = {"default": [], "kept": []}
    for number in range(rounds):
        for name in sorted(told, reverse=bool(number % 2)):
            command = [sys.executable, "-m", __name__, name, str(size), str(torch.get_num_threads())]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=plain)
            told[name].append(json.loads(done.stdout.splitlines()[-1]))
    if not all(found["kept"] for found in told["kept"]):
        return None
    seconds = {name: [found["seconds"] for found in values] for name, values in told.items()}
    return {
        "seconds": {name: quartiles(values) for name, values in seconds.items()},
        "pages": {name: quartiles([found["pages"] for found in values]) for name, values in told.items()},
        "ratio": median_interval(
            [a / b for a, b in zip(seconds["default"], seconds["kept"], strict=True)]
        ).told(),
        "rounds": rounds,
    }


def _measure(kept: bool, size: int) -> dict[str, float]:
    if kept:
        keep_freed_memory()
    run = laptop_run(torch.device("cpu"), size, 2)
    marks: list[tuple[float, int]] = []

    def mark() -> None:
        marks.append((time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt))

    for epoch in range(2):
        marks.clear()
        run._epoch(epoch, SimpleNamespace(update=mark), lambda *_: None)
    (began, before), (ended, after) = marks[0], marks[-1]
    pages = (after - before) / (len(marks) - 1)
    return {"seconds": ended - began, "pages": pages, "kept": kept and keep_freed_memory()}


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    print(json.dumps(_measure(sys.argv[1] == "kept", int(sys.argv[2]))))
