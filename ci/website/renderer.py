"""Jupyter Book as a process of its own, with less waiting: ``python -m website.renderer ARGUMENTS``."""

from __future__ import annotations

import functools
import gc
import importlib.metadata


def main() -> None:
    """Run the command ``jupyter-book``."""
    # Pages are large trees of small objects that live to the end: looking for garbage in them finds nothing.
    gc.set_threshold(200_000, 50, 1000)
    # Each citation asks anew which styles are installed.
    importlib.metadata.entry_points = functools.cache(importlib.metadata.entry_points)  # type: ignore[assignment]
    from jupyter_book.cli.main import main as jupyter_book

    jupyter_book()


if __name__ == "__main__":
    main()
