"""Files that are there whole, or not at all."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path


class NotWritten(OSError):
    """Something could not be written, whatever the reason: a path of the system, its rights, a full disk."""


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that whoever looks, at whatever moment, finds the old content or the new one.

    The bytes go to a temporary file beside it, to the disk, and under the final name, in this order: neither
    a killed process nor a power cut leaves half a file.

    Raises:
        NotWritten: In one line: which file could not be written, why, and that nothing was changed.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would keep a shared store from its other readers
        os.replace(temporary, path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise NotWritten(
            error.errno,
            f"cannot write {path}: {error.strerror}; nothing was changed. Make room, or give another folder",
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the new name itself durable; not every file system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
