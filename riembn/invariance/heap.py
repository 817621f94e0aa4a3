"""Memory that one pass has freed goes back to the system before the next asks for more."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

__all__ = ["return_freed_memory"]


def return_freed_memory() -> None:
    """Have glibc return every free page of its heap; nothing happens where the C library is another.

    A tensor is an aligned block, and glibc (2.36 at least) does not put one into a hole of just its size. So the holes
    of one pass stay, and the next one takes most of its memory anew.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Any:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
