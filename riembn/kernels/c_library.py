"""The compiled library: built once with the machine's C compiler, then kept in a cache folder of this user's.

A file is loaded only if nobody else can have written it and its content has the checksum that its name ends in.
Anything else of that name, an empty or a damaged file too, is removed and built anew.
"""

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
import time
from pathlib import Path
from typing import NamedTuple

_SOURCES = [Path(__file__).with_name(name) for name in ("rows.c", "rows.h")]
_FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fno-math-errno", "-shared", "-fPIC")
_RETRY = 24 * 3600  # seconds after which a compiler that failed is asked again


class Found(NamedTuple):
    """The compiled row updates, or None and why there are none."""

    library: ctypes.CDLL | None
    told: str


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled row updates, or None where there is no working C compiler."""
    return found().library


@functools.cache
def found() -> Found:
    """The library and where it is, or why there is none; decided once a process."""
    if sys.platform not in ("linux", "darwin") or sys.maxsize < 2**32:
        return Found(None, "not on Linux or macOS of 64 bits")
    compiler = shlex.split(os.environ.get("CC", "")) or _first_of("cc", "gcc", "clang")
    if not compiler:
        return Found(None, "no C compiler; install one, or name it in the environment variable CC")
    try:
        folder = _own_folder()
        key = _key(compiler)
        path = _kept(folder, key) or _build(compiler, folder, key)
        _share_openmp()
        return Found(ctypes.CDLL(str(path)), str(path))
    except (OSError, RuntimeError) as error:
        return Found(None, str(error))  # no place to write, a compiler that fails, a library that cannot be loaded


def _first_of(*names: str) -> list[str]:
    return [path for name in names if (path := shutil.which(name))][:1]


def _own_folder() -> Path:
    """The cache folder, made if there is none; only this user may write to it."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "riembn")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.geteuid():
        raise OSError(f"{folder} belongs to another user; name a folder of your own in XDG_CACHE_HOME")
    if folder.stat().st_mode & 0o022:
        folder.chmod(0o700)
    return folder


def _key(compiler: list[str]) -> str:
    """What the library depends on: the sources, the compiler, and the processor it is tuned to."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else []
    processor = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    told = [*(source.read_text() for source in _SOURCES), *_FLAGS, *compiler]
    told += [platform.machine(), processor]
    return _checksum("\n".join(told).encode())


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _kept(folder: Path, key: str) -> Path | None:
    for path in sorted(folder.glob(f"rows-{key}-*.so")):
        if _is_own(path) and path.stem.endswith(f"-{_checksum(path.read_bytes())}"):
            return path
        path.unlink()
    return None


def _is_own(path: Path) -> bool:
    """Whether it is a file that only this user may have written."""
    status = path.lstat()
    return path.is_file() and not path.is_symlink() and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _build(compiler: list[str], folder: Path, key: str) -> Path:
    failed = folder / f"rows-{key}.failed"
    told = f"{compiler[0]} cannot compile the fused step; its message is in {failed}, remove that to try again"
    if failed.exists() and time.time() - failed.stat().st_mtime < _RETRY:
        raise OSError(told)
    print("riembn: compiling the fused optimizer step (once)", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        made = Path(work, "rows.so")
        for openmp in (["-fopenmp"], []):  # a compiler without OpenMP gives a library of one thread
            command = [*compiler, *_FLAGS, *openmp, "-o", str(made), str(_SOURCES[0]), "-lm"]
            message = _run(command, made)
            if not message:
                path = folder / f"rows-{key}-{_checksum(made.read_bytes())}.so"
                made.chmod(0o700)
                _write_through(made)
                made.replace(path)  # whole or not at all, also when two processes compile at once
                _write_through(folder)
                failed.unlink(missing_ok=True)
                return path
    failed.write_text(message)
    print(f"riembn: {told}; steps on a CPU use lists of tensors, which is slower", file=sys.stderr)
    raise OSError(told)


def _run(command: list[str], made: Path) -> str:
    """What the compiler says if it fails, else nothing."""
    try:
        done = subprocess.run(command, capture_output=True, check=False, text=True, errors="replace")
    except OSError as error:
        return f"{error}\n"
    if done.returncode or not made.exists():
        return f"{shlex.join(command)}\n{done.stdout}{done.stderr}\nends with code {done.returncode}\n"
    return ""


def _write_through(path: Path) -> None:
    """Have the system write a file or folder to its disk, so that a crash leaves no half of it under its name."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _share_openmp() -> None:
    """Let the library find the OpenMP that torch has loaded, so that both use one pool of threads.

    A second runtime would keep a second pool, whose idle threads spin against the first.
    """
    maps = Path("/proc/self/maps")
    if maps.exists():
        loaded = {line.split()[-1] for line in maps.read_text().splitlines() if "libgomp" in line}
        for path in sorted(loaded):
            ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
