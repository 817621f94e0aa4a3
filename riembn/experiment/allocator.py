"""Where does memory go that a training step gives back? Not to the system, only to ask for it again in the next."""

from __future__ import annotations

import ctypes
import os
import platform
import sys

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST = 32 << 20  # that glibc takes on a 64-bit machine


def keep_freed_memory() -> bool:
    """Have glibc keep what this process frees; returns whether it does.

    By default it returns the end of its heap, and every block above a threshold, as soon as they are free. A training
    step on a CPU gives back all its activations, and the system then zeroes page after page of them anew: up to 9,000
    pages a step, a fifth of its time, were counted on the book's laptop size. The memory is free to every other use
    within the process. Blocks of more than 32 MiB still go back.

    Nothing happens where the environment decides (``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_THRESHOLD_``,
    ``GLIBC_TUNABLES``), or the C library is another.
    """
    decided = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if decided or not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, -1))
