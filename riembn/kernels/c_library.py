"""Where does the compiled library come from? Built once with the machine's C compiler, then kept in a cache folder."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["library"]

_SOURCES = [Path(__file__).with_name(name) for name in ("rows.c", "rows.h")]
_FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fno-math-errno", "-shared", "-fPIC")


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled row updates, or None where there is no working C compiler; decided once a process."""
    compiler = shlex.split(os.environ.get("CC", "")) or _first_of("cc", "gcc", "clang")
    if not compiler or not _is_native_64_bit():
        return None
    try:
        path = _cache() / f"rows-{_key(compiler)}.so"
        if not path.exists() and not _compile(compiler, path):
            return None
        _share_openmp()
        return ctypes.CDLL(str(path))
    except (OSError, RuntimeError):
        return None  # no home, no place to write, or a library that this machine cannot load


def _first_of(*names: str) -> list[str]:
    return [path for name in names if (path := shutil.which(name))][:1]


def _is_native_64_bit() -> bool:
    return sys.platform in ("linux", "darwin") and sys.maxsize > 2**32


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "riembn")


def _key(compiler: list[str]) -> str:
    """What the library depends on: the sources, the compiler, and the processor it is tuned to."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else []
    processor = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    told = [*(source.read_text() for source in _SOURCES), *_FLAGS, *compiler]
    told += [platform.machine(), processor]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def _compile(compiler: list[str], path: Path) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    print("riembn: compiling the fused optimizer step (once)", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder, path.name)
        for openmp in (["-fopenmp"], []):  # a compiler without OpenMP gives a library of one thread
            command = [*compiler, *_FLAGS, *openmp, "-o", str(made), str(_SOURCES[0]), "-lm"]
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                made.replace(path)  # whole or not at all, also when two processes compile at once
                return True
    return False


def _share_openmp() -> None:
    """Let the library find the OpenMP that torch has loaded, so that both use one pool of threads.

    A second runtime would keep a second pool, whose idle threads spin against the first.
    """
    maps = Path("/proc/self/maps")
    if maps.exists():
        loaded = {line.split()[-1] for line in maps.read_text().splitlines() if "libgomp" in line}
        for path in sorted(loaded):
            ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
