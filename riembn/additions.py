"""What a fork has added to the open tables: read from a file, and carried to the processes of a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .data import datasets
from .methods import methods
from .models import networks
from .open_table import OpenTable

__all__ = ["carried", "load_plugin", "take_over"]

TABLES: dict[str, OpenTable[Any]] = {"methods": methods, "networks": networks, "datasets": datasets}


def load_plugin(path: str | Path) -> None:
    """Run a Python file that adds to `riembn.methods`, `riembn.networks` or `riembn.datasets`.

    It is run like a script, as no module that could be imported, so that what it defines goes to other processes by
    value.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file fails, or adds nothing.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"plugin: there is no file {path}; give one that adds to riembn.methods, say.")
    before = [dict(table.added) for table in TABLES.values()]
    try:
        code = compile(path.read_text(encoding="utf-8"), str(path.absolute()), "exec")
        exec(code, {"__name__": f"plugin_{path.stem}", "__file__": str(path)})
    except Exception as error:
        raise ValueError(f"plugin: {path} fails with {type(error).__name__}: {error}") from error
    if before == [table.added for table in TABLES.values()]:
        raise ValueError(f"plugin: {path} adds nothing; give one with riembn.methods[NAME] = riembn.Method(…), say.")


def carried() -> bytes | None:
    """All that was added, for `take_over` in another process; None if that is nothing."""
    import cloudpickle

    added = {name: table.added for name, table in TABLES.items() if table.added}
    return cloudpickle.dumps(added) if added else None


def take_over(added: bytes | None) -> None:
    """Add to this process's tables what `carried` gave."""
    import cloudpickle

    for name, entries in (cloudpickle.loads(added) if added else {}).items():
        for key, entry in entries.items():
            TABLES[name][key] = entry
