"""On what was it measured? Device, versions, threads, allocator, and how quiet the machine was."""

from __future__ import annotations

import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from riembn.kernels.c_library import library
from riembn.training.machine import environment

_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_SETTINGS = ("MALLOC_", "OMP_", "MKL_", "KMP_", "GOMP_", "GLIBC_TUNABLES", "LD_PRELOAD", "PYTORCH_", "CUDA_")


def describe(device: torch.device, commit: str | None = None) -> dict[str, Any]:
    """What a reader needs to know to compare with another machine.

    ``others`` is the share of all cores that was in use in a second of waiting just before, and ``quiet`` whether that
    was little.

    Args:
        device: Where the weights lie.
        commit: Of the code, for where it does not lie in a git checkout.
    """
    told = environment(device)
    if told["commit"] is None:
        told["commit"] = commit
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    others = _others(cores)
    return {
        **told,
        "cores": cores,
        "interop_threads": torch.get_num_interop_threads(),
        "allocator": " ".join(platform.libc_ver()).strip() or "unknown",
        "huge_pages": _chosen(_HUGE_PAGES),
        "settings": {k: v for k, v in sorted(os.environ.items()) if k.startswith(_SETTINGS)},
        "compiled_step": library() is not None,
        "versions": {name: _version(name) for name in ("triton", "geoopt", "adamp", "torchvision", "timm", "numpy")},
        "others": others,
        "quiet": others <= 0.1,
    }


def _others(cores: int) -> float:
    """Share of all cores in use while this process waits for a second; else by the load average."""
    before = _processor_times()
    if before is None:
        return round(min(1.0, os.getloadavg()[0] / cores), 3)
    time.sleep(1)
    spent = [b - a for a, b in zip(before, _processor_times() or before, strict=True)]
    idle = spent[3] + spent[4]  # idle, and waiting for a disk
    return round(1 - idle / max(sum(spent), 1), 3)


def _processor_times() -> list[int] | None:
    """User, nice, system, idle and so on, of all cores together, as Linux counts them."""
    stat = Path("/proc/stat")
    return [int(ticks) for ticks in stat.read_text().split("\n", 1)[0].split()[1:9]] if stat.exists() else None


def slug(device: torch.device) -> str:
    """A word for file names: ``cpu``, ``nvidia-h200``."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return "-".join(name.lower().split())


def free_bytes(device: torch.device) -> int:
    """Memory that can still be had."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        return 1024 * int(fields["MemAvailable"].split()[0])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _chosen(path: Path) -> str | None:
    """The entry in brackets of a file such as ``always [madvise] never``."""
    text = path.read_text() if path.exists() else ""
    return text.partition("[")[2].partition("]")[0] or None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
