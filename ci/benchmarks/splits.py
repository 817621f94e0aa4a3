"""What does a split cost, and is it right? Each network in a process of its own, whose peak memory is its own."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from riembn.invariance import Entry, split
from riembn.invariance.twin import Twin

from .networks import NETWORKS
from .rescaling import check

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def measure_split(name: str, *, limit: float) -> dict[str, Any]:
    """Time, memory and verdict of one network's split, and what brute force says of it.

    Args:
        name: One of `NETWORKS`.
        limit: Seconds for all of it; a network that takes more has an ``error``.
    """
    network = NETWORKS[name]
    told: dict[str, Any] = {"name": name, "source": network.source, "example": list(network.shape)}
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__, name],
            env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
            timeout=limit,
            capture_output=True,
            text=True,
            check=True,
        )
    except subprocess.TimeoutExpired:
        return told | {"error": f"not done in {limit:.0f} s"}
    except subprocess.CalledProcessError as error:
        return told | {"error": (error.stderr.strip().splitlines() or [f"exit status {error.returncode}"])[-1]}
    return told | json.loads(done.stdout.splitlines()[-1])


def _measured(name: str) -> dict[str, Any]:
    model, example = NETWORKS[name].build()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    _warm_up()
    passes = _count_passes()
    gc.collect()
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")  # the peak starts anew
    before, start, wall = _bytes("VmRSS"), time.process_time(), time.perf_counter()
    try:
        found: Any = split(model, example)
    except ValueError as error:
        if "contains no normalization" not in str(error):
            raise
        found = None
    spent = {"cpu_seconds": time.process_time() - start, "seconds": time.perf_counter() - wall}
    told: dict[str, Any] = {
        "parameters": sum(p.numel() for p in model.parameters()),
        **spent,
        "passes": len(passes),
        "weight_bytes": weights,
        "peak_bytes": _bytes("VmHWM") - before if before else None,
    }
    if found is None:
        entries = [Entry(n, p, False, "no normalization") for n, p in model.named_parameters()]
    else:
        entries = list(found.values())
        told |= {"change": found.change, "own_eps_change": found.own_eps_change}
    matrices = [e for e in entries if e.parameter.dim() > 1]
    invariant = [e for e in matrices if e.invariant]
    return told | {
        "weights": len(matrices),
        "invariant": len(invariant),
        "rows": sum(e.rows for e in invariant),
        "granularities": list(dict.fromkeys(e.granularity for e in invariant)),
        "share": sum(e.parameter.numel() for e in entries if e.invariant) / told["parameters"],
        "reasons": _counted(e.reason for e in matrices if not e.invariant),
        "check": check(model, example, entries),
    }


def _counted(reasons: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for reason in reasons:
        found[reason] = found.get(reason, 0) + 1
    return found


def _warm_up() -> None:
    """So that what a first call loads is not counted."""
    logging.getLogger("riembn").setLevel(logging.ERROR)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
    split(net, torch.randn(8, 3, 8, 8))


def _count_passes() -> list[None]:
    passes: list[None] = []
    run = Twin.run

    def counted(*args: Any, **options: Any) -> Any:
        passes.append(None)
        return run(*args, **options)

    Twin.run = counted  # type: ignore[method-assign]
    return passes


def _bytes(key: str) -> int:
    if not _STATUS.exists():
        return 0
    match = re.search(rf"{key}:\s+(\d+)", _STATUS.read_text())
    return 1024 * int(match[1]) if match else 0


if __name__ == "__main__":
    print(json.dumps(_measured(sys.argv[1]), allow_nan=False))
