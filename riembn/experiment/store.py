"""A folder of records, and which of them is a configuration's."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from .checkpoint import Checkpoints
from .config import RunConfig
from .files import write_whole
from .record import Record

if TYPE_CHECKING:
    import pandas


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
        self._note(record.config).unlink(missing_ok=True)
        return path

    def records(self, damaged: Callable[[str], None] | None = None) -> Iterator[Record]:
        """All records, in the order of their names.

        Args:
            damaged: Told of each file that is damaged, which is then passed over; None: the first is an error.

        Raises:
            ValueError: If a file is damaged: which, and why.
        """
        for _, record in self._files(damaged):
            yield record

    def frame(self, damaged: Callable[[str], None] | None = None) -> pandas.DataFrame:
        """All records as tidy data: one row a run and epoch, the configuration's fields as columns."""
        return tidy(self.records(damaged))

    def checkpoints(self, config: RunConfig) -> Checkpoints:
        """The checkpoints of a run."""
        return Checkpoints(self.path / "checkpoints" / config.name, digest=config.digest())

    def lock(self, config: RunConfig) -> FileLock:
        """A lock that one process at a time holds while it trains a run; it dies with its process."""
        folder = self.path / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / f"{config.name}.lock")

    def note_failure(self, config: RunConfig, text: str) -> None:
        """Remember why a run failed, until there is a record of it."""
        with suppress(OSError):  # the failure itself may be that nothing can be written
            write_whole(self._note(config), text.encode())

    def failure(self, config: RunConfig) -> str | None:
        """Why a run failed when a sweep last tried it, as a traceback; None if it did not."""
        note = self._note(config)
        return note.read_text(encoding="utf-8") if note.exists() else None

    def failures(self) -> dict[str, str]:
        """The names of the runs that failed and have no record, each with its traceback."""
        notes = sorted((self.path / "checkpoints").glob("*.failed"))
        lost = [note for note in notes if not (self.path / f"{note.stem}.json").exists()]
        return {note.stem: note.read_text(encoding="utf-8") for note in lost}

    def verify(self) -> list[str]:
        """What is wrong with the store's files, one line each: damaged records, and records of another name."""
        wrong: list[str] = []
        for path, record in self._files(wrong.append):
            if not path.stem.endswith(record.digest):
                wrong.append(
                    f"Store: {path} holds the run {record.digest}, which its name does not say; "
                    f"call it {self._file(record.config).name}."
                )
        return wrong

    def merge(self, other: Store | str | Path) -> int:
        """Take over the records of another store that are not here; returns how many.

        Raises:
            ValueError: If a record there is damaged, or differs in its numbers from the one here; then nothing
                is taken over.
        """
        source = other if isinstance(other, Store) else Store(other)
        if not source.path.is_dir():
            raise ValueError(f"Store: there is no store {source.path} to take records from.")
        new = []
        for path, theirs in source._files():
            place = self.path / path.name
            if not place.exists():
                new.append((place, path.read_bytes()))
            elif not read_record(place).same_result(theirs):
                raise ValueError(f"Store: {path} and {place} are one run with different numbers; remove one.")
        for place, content in new:
            write_whole(place, content)
        return len(new)

    def prune(self, damaged: Callable[[str], None] | None = None) -> int:
        """Remove the checkpoints of runs whose records are here, final weights included; returns bytes freed.

        Those of a damaged record stay: it would have to be trained again from them; ``damaged`` as for `records`.
        """
        freed = 0
        for path, _ in self._files(damaged):
            folder = self.path / "checkpoints" / path.stem
            freed += sum(file.stat().st_size for file in folder.glob("*") if file.is_file())
            shutil.rmtree(folder, ignore_errors=True)
        return freed

    def _files(self, damaged: Callable[[str], None] | None = None) -> Iterator[tuple[Path, Record]]:
        """Each record with its file; ``damaged`` as for `records`."""
        for path in sorted(self.path.glob("*.json")):
            try:
                record = read_record(path)
            except ValueError as error:
                if damaged is None:
                    raise
                damaged(str(error))
            else:
                yield path, record

    def _note(self, config: RunConfig) -> Path:
        return self.path / "checkpoints" / f"{config.name}.failed"

    def _file(self, config: RunConfig) -> Path:
        return self.path / f"{config.name}.json"


def last_line(text: str) -> str:
    """What a traceback comes to."""
    return text.strip().splitlines()[-1]


def read_record(path: Path) -> Record:
    """A record from its file; a damaged one is a ValueError that names the file."""
    try:
        return Record.from_json(path.read_text(encoding="utf-8"))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"Store: {path} is no record that can be read: {error}. Restore it, or remove it to run it again."
        ) from error


def tidy(records: Iterator[Record]) -> pandas.DataFrame:
    """Records as one frame, one row a run and epoch; an empty one if there are none."""
    import pandas

    rows = [record.rows() for record in records]
    names = list(rows[0]) if rows else []  # all records have the same
    return pandas.DataFrame({name: [value for one in rows for value in one[name]] for name in names})
