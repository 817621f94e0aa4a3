"""Memory that is free goes back to the system before a process takes much more of it."""

from __future__ import annotations

import ctypes
import mmap
import sys
from functools import cache
from pathlib import Path
from typing import Any

_MUCH = 4  # steps
_STATM = Path("/proc/self/statm")


class Heap:
    """Keeps what the process holds close to what it uses, where the C library is glibc.

    A tensor is an aligned block, and glibc (2.36 at least) does not put one into a hole of just its size. So holes
    stay, and the next tensors take their memory anew.

    Args:
        step: Bytes that the process may grow by before its free pages are returned.
    """

    def __init__(self, step: float) -> None:
        self.step, self._held, self._freed = step, _resident(), 0

    def look(self, freed: int = 0, wanted: int = 0) -> None:
        """Return free pages if the process has grown since it last held least, or will, or much was freed.

        Args:
            freed: Bytes that were given back since the last look.
            wanted: Bytes that are asked for next.
        """
        held, self._freed = _resident(), self._freed + freed
        if held + wanted > self._held + self.step or self._freed > _MUCH * self.step:
            self.trim()
        else:
            self._held = min(held, self._held)

    def trim(self) -> None:
        """Return every free page."""
        trim = _trim()
        if trim is not None:
            trim(0)
        self._held, self._freed = _resident(), 0


def _resident() -> int:
    """Bytes of memory; 0 where the system does not say."""
    try:
        return int(_STATM.read_bytes().split()[1]) * mmap.PAGESIZE
    except OSError:
        return 0


@cache
def _trim() -> Any:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
