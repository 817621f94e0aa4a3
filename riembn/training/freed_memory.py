"""Memory that a training step gives back stays with the process, which asks for it again in the next."""

from __future__ import annotations

import ctypes
import os
import platform
import sys

DECIDE = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""Variables with which the environment decides, and nothing is done; the last may bring another allocator."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST = 32 << 20  # that glibc takes on a 64-bit machine


def keep_freed_memory() -> bool:
    """Have glibc keep what this process frees, from now on; returns whether it does.

    By default it returns the end of its heap, and every block above a threshold, as soon as they are free. A training
    step on a CPU gives back its activations, and the system then zeroes page after page of them anew: thousands a step
    at the book's laptop size (`book/benchmarks/train-cpu.json`, ``freed_memory``). What is kept is free to every other
    use within the process. Blocks of 32 MiB and more still go back.

    Nothing happens where the environment decides (`DECIDE`), or the C library is another.
    """
    if any(name in os.environ for name in DECIDE):
        return False
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, -1))
