"""The processes of a build: marked in their environment, so that all of them can be ended together."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from website.contents import BookError

MARK = "RIEMBN_BOOK"


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Refuse to build where another ``ci/book`` of this clone is at it; end what one that was killed left behind."""
    file = root / "_build" / ".book.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise BookError(
                f"another ci/book (process {lock.read().strip() or 'unknown'}) builds in this clone: "
                "wait until it has ended, or end it."
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        stop(root)
        try:
            yield
        finally:
            stop(root)


def marked(root: Path) -> dict[str, str]:
    """The variable by which a process, and what it starts in its turn, is known as one of this clone's build."""
    return {MARK: str(root)}


def stop(root: Path) -> None:
    """End every marked process at once.

    Neither process groups nor parents would do: a kernel leads a session of its own, and its workers outlive it.
    """
    for _ in range(5):  # one that was just being started is found the next time
        found = [process for process in psutil.process_iter() if _is_marked(process, root)]
        for process in found:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass
        if not found:
            return
        psutil.wait_procs(found, timeout=2)


def _is_marked(process: psutil.Process, root: Path) -> bool:
    try:
        return process.environ().get(MARK) == str(root) and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):
        return False
