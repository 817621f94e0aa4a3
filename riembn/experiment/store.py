"""Where do records lie, and which of them is a configuration's?"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .checkpoint import Checkpoints
from .config import RunConfig
from .files import write_whole
from .record import Record

if TYPE_CHECKING:
    import pandas
    from filelock import FileLock

__all__ = ["Store"]


class Store:
    """A folder with one JSON record a run, which git keeps, and a folder ``checkpoints``, which it ignores.

    Several processes may use one store at once: a record is there whole or not at all, and a run is trained
    by one process at a time.

    Args:
        path: The folder; made when first written to.

    Raises:
        NotADirectoryError: If the path is a file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"Store: {self.path} is not a folder; give one, it need not exist yet.")

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r})"

    def get(self, config: RunConfig) -> Record | None:
        """The record of a configuration, or None if it has not been run to its end.

        Raises:
            ValueError: If its file is damaged.
        """
        path = self._file(config)
        return read_record(path) if path.exists() else None

    def put(self, record: Record) -> Path:
        """Keep a record, in place of an older one of the same run; returns its file."""
        path = self._file(record.config)
        write_whole(path, record.to_json().encode())
        return path

    def records(self) -> Iterator[Record]:
        """All records, in the order of their names.

        Raises:
            ValueError: If a file is damaged: which, and why.
        """
        for path in sorted(self.path.glob("*.json")):
            yield read_record(path)

    def frame(self) -> pandas.DataFrame:
        """All records as tidy data: one row a run and epoch, the configuration's fields as columns."""
        return tidy(self.records())

    def checkpoints(self, config: RunConfig) -> Checkpoints:
        """The checkpoints of a run."""
        return Checkpoints(self.path / "checkpoints" / config.name, digest=config.digest())

    def lock(self, config: RunConfig) -> FileLock:
        """A lock that one process at a time holds while it trains a run; it dies with its process."""
        from filelock import FileLock

        folder = self.path / "checkpoints"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                error.errno, f"cannot make {folder}: {error.strerror}; choose another store"
            ) from error
        return FileLock(folder / f"{config.name}.lock")

    def _file(self, config: RunConfig) -> Path:
        return self.path / f"{config.name}.json"


def read_record(path: Path) -> Record:
    """A record from its file; a damaged one is a ValueError that names the file."""
    try:
        return Record.from_json(path.read_text(encoding="utf-8"))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"Store: {path} is no record that can be read: {error}. Restore it, or remove it to run it again."
        ) from error


def tidy(records: Iterator[Record]) -> pandas.DataFrame:
    """Records as one frame, one row a run and epoch; an empty one if there are none."""
    import pandas

    frames = [record.frame() for record in records]
    if not frames:
        return pandas.DataFrame()
    with warnings.catch_warnings():
        # A column that is None throughout one run takes its type from the others: what is wanted here.
        warnings.simplefilter("ignore", FutureWarning)
        return pandas.concat(frames, ignore_index=True)
