"""Under each figure and table: the file with its numbers, and the way to the runs that it is drawn from."""

from __future__ import annotations

from html import escape
from pathlib import PurePosixPath

from nbformat import NotebookNode

from riembn.pages.drawn import DATA
from website.contents import BookError, Page


def linked(page: Page, notebook: NotebookNode, runs: int) -> dict[str, bytes]:
    """Put a line of links under each figure and table of the notebook, in place.

    Args:
        page: The chapter.
        notebook: As papermill left it.
        runs: How many recorded runs the chapter is drawn from.

    Returns:
        The files that the links lead to, by their place below ``_static``.
    """
    files: dict[str, bytes] = {}
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", []) if DATA in out.get("data", {})]
    for out in outputs:
        told = out.data.pop(DATA)  # told to us, not to the reader
        what = "table" if "riembn-table" in out.data["text/html"] else "figure"
        same = sum(name.partition("/")[2].startswith(what) for name in map(_below_data, files))
        name = f"data/{page.name}/{told['name'] or f'{what}-{same + 1}'}.csv"
        if name in files:
            raise BookError(f"{page.name}: two figures or tables have the name {told['name']!r}.")
        files[name] = told["csv"].encode()
        line = _line(page, name, runs)
        html = out.data["text/html"]
        end = html.rindex("</figure>") if what == "figure" else len(html)
        out.data["text/html"] = html[:end] + line + html[end:]
    return files


def _line(page: Page, name: str, runs: int) -> str:
    links = [f'<a href="../_static/{escape(name)}" download="">Numbers (CSV)</a>']
    if runs:
        links.append(f'<a href="{page.name}.html#origin">{runs} recorded runs</a>')
    return f'<p class="riembn-data">{" · ".join(links)}</p>'


def _below_data(name: str) -> str:
    return str(PurePosixPath(name).relative_to("data"))
