"""What a fork has added to the open tables: read from a file, and carried to the processes of a sweep."""

from __future__ import annotations

import linecache
import sys
import types
import uuid
from pathlib import Path
from typing import Any

import cloudpickle

from .data import datasets
from .methods import methods
from .models import networks
from .open_table import OpenTable

_THIS_PROCESS = uuid.uuid4().hex  # a forked one has its tables, and this name, from the first

TABLES: dict[str, OpenTable[Any]] = {"methods": methods, "networks": networks, "datasets": datasets}


def load_plugin(path: str | Path) -> None:
    """Run a Python file that adds to `riembn.methods`, `riembn.networks` or `riembn.datasets`.

    It is run like a script, anew each time; what it defines goes to other processes by value.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file fails, or adds nothing.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"plugin: there is no file {path}; give one that adds to riembn.methods, say.")
    before = [dict(table.added) for table in TABLES.values()]
    name, file = f"plugin_{path.stem}", str(path.absolute())
    module = types.ModuleType(name)
    module.__file__ = file
    try:
        text = path.read_text(encoding="utf-8")
        # The source of what runs, whatever becomes of the file: it is part of a run's digest.
        linecache.cache[file] = len(text), None, text.splitlines(keepends=True), file
        sys.modules[name] = module  # where dataclasses look for it
        cloudpickle.register_pickle_by_value(module)
        exec(compile(text, file, "exec"), vars(module))
    except Exception as error:
        raise ValueError(f"plugin: {path} fails with {type(error).__name__}: {error}") from error
    if before == [table.added for table in TABLES.values()]:
        raise ValueError(f"plugin: {path} adds nothing; give one with riembn.methods[NAME] = riembn.Method(…), say.")


def carried() -> bytes | None:
    """All that was added, for `take_over` in another process; None if that is nothing."""
    added = {name: table.added for name, table in TABLES.items() if table.added}
    return cloudpickle.dumps((_THIS_PROCESS, cloudpickle.dumps(added))) if added else None


def take_over(carried: bytes | None) -> None:
    """Add to this process's tables what `carried` gave in another one; in the same one they have it."""
    process, added = cloudpickle.loads(carried) if carried else (_THIS_PROCESS, b"")
    if process == _THIS_PROCESS:
        return
    for name, entries in cloudpickle.loads(added).items():
        for key, entry in entries.items():
            TABLES[name][key] = entry
