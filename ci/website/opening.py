"""What stands under the title of a chapter: how long it is to read and to run, and how to have it."""

from __future__ import annotations

import json
import os
import re
from html import escape
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from website.contents import Page

_WORDS_A_MINUTE = 200  # of text with formulas
_TIME = "<!-- seconds -->"


def repository() -> str | None:
    """The address that the book is published from, BOOK_REPOSITORY, such as ``https://github.com/OWNER/NAME``."""
    return (os.environ.get("BOOK_REPOSITORY") or "").rstrip("/").removesuffix(".git") or None


def opened(root: Path, page: Page, notebook: NotebookNode) -> None:
    """Put the line under the title, in place."""
    items = [f"{reading_minutes(notebook)} min to read{_TIME}"]
    items.append(f'<a href="../_sources/book/{page.name}.ipynb" download="">notebook</a>')
    if address := repository():
        name = address.split("://")[-1].partition("/")[2]
        path = f"{page.name}.ipynb"
        colab = f"https://colab.research.google.com/github/{name}/blob/notebooks/{path}"
        binder = f"https://mybinder.org/v2/gh/{name}/notebooks?labpath={path}"
        items += [f'<a href="{escape(colab)}">open in Colab</a>', f'<a href="{escape(binder)}">open in Binder</a>']
    if page.name != "18-fork" and (root / "book" / "18-fork.ipynb").is_file() and "records(" in _code(notebook):
        items.append('<a href="18-fork.html">fork it</a>')
    line = f'<p class="about-page">{" · ".join(items)}</p>'
    title = notebook.cells[0]
    title.source = re.sub(r"\A(# .*\n)", lambda found: f"{found[0]}\n{line}\n", title.source + "\n", count=1).rstrip()


def timed(root: Path, name: str, text: str) -> str:
    """A rendered page with how long its chapter runs, which is not staged: new times need no new rendering."""
    seconds = recorded_times(root).get(name, {}).get("chapter")
    return text.replace(_TIME, f" · {round(seconds)} s to run" if seconds else "", 1)


def reading_minutes(notebook: NotebookNode) -> int:
    """At an even pace; code is skimmed, so it does not count."""
    text = " ".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return max(1, round(len(text.split()) / _WORDS_A_MINUTE))


def recorded_times(root: Path) -> dict[str, Any]:
    """Seconds by chapter as ``ci/book --keep-times`` wrote them down: on one machine, once, so pages stay the same."""
    file = root / "book" / "times.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))["chapters"]) if file.is_file() else {}


def portable(page: Page) -> bytes:
    """The chapter as a notebook to take along; where the repository is known, its first cell fetches the rest."""
    notebook = nbformat.read(page.source, as_version=4)
    if address := repository():
        folder = address.rpartition("/")[2]
        install = "\n".join(
            [
                "# Away from a clone of the book: fetch the package and the records, and work there.",
                f"!git clone --quiet --depth 1 {address} {folder}",
                f"%cd {folder}",
                '%pip install --quiet ".[book]"',
            ]
        )
        notebook.cells.insert(0, nbformat.v4.new_code_cell(install, id="install"))
    return (nbformat.writes(notebook) + "\n").encode()


def _code(notebook: NotebookNode) -> str:
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
