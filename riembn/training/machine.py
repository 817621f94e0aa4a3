"""Where and with what a run computes: device, instruction set, versions, commit."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch


def environment(device: torch.device) -> dict[str, Any]:
    """Device, versions, threads, and the commit if the package lies in a git checkout.

    Numbers on a CPU depend on the number of threads in their last bits; runs of one sweep use one thread
    each, however many run side by side.
    """
    commit, dirty = _commit()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu": _cpu(),
        "isa": torch.backends.cpu.get_cpu_capability(),  # which of torch's kernels: their last bits differ
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a class of its own, which a checkpoint would not load
        "numpy": _version("numpy"),
        "torchvision": _version("torchvision"),
        "riembn": _version("riembn"),
        "commit": commit,
        "dirty": dirty,
    }


def peak_memory(device: torch.device) -> float | None:
    """MiB: of a GPU's memory since `torch.cuda.reset_peak_memory_stats`; else of this process since its start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource  # not everywhere
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB elsewhere


@functools.cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@functools.cache
def _commit() -> tuple[str | None, bool | None]:
    """Commit of the package's source and whether the package differs from it; None outside a checkout."""
    package = Path(__file__).resolve().parents[1]
    if not (package.parent / ".git").exists():
        return None, None  # installed: a .git further up would be somebody else's

    def git(*words: str) -> str:
        quiet = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        return subprocess.run(
            ["git", "-C", str(package), *words], capture_output=True, text=True, check=True, env=quiet
        ).stdout

    try:
        # The package alone decides: a page being written does not make a result less reproducible.
        return git("rev-parse", "HEAD").strip(), bool(git("status", "--porcelain", "--", ".").strip())
    except (OSError, subprocess.CalledProcessError):
        return None, None


if __name__ == "__main__":
    import json

    print(json.dumps(environment(torch.device("cuda" if torch.cuda.is_available() else "cpu"))))
