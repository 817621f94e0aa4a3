"""Under each figure and table: the file with its numbers, and the way to the runs that it is drawn from."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from pathlib import PurePosixPath

from nbformat import NotebookNode

from riembn.pages.drawn import DATA
from website.contents import BookError, Page


@dataclass
class Numbers:
    """What is behind the figures and tables of a page."""

    files: dict[str, bytes] = field(default_factory=dict)  # CSV, by their place below ``_static``
    shown: dict[str, list[str]] = field(default_factory=dict)  # anchors of what is drawn from a run, by its digest


def linked(page: Page, notebook: NotebookNode) -> Numbers:
    """Put links under each figure and table of the notebook, and an anchor at each that is drawn from runs."""
    found = Numbers()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", []) if DATA in out.get("data", {})]
    for out in outputs:
        told = out.data.pop(DATA)  # told to us, not to the reader
        what = "table" if "riembn-table" in out.data["text/html"] else "figure"
        same = sum(name.partition("/")[2].startswith(what) for name in map(_below_data, found.files))
        name = told["name"] or f"{what}-{same + 1}"
        file = f"data/{page.name}/{name}.csv"
        if file in found.files:
            raise BookError(f"{page.name}: two figures or tables have the name {name!r}.")
        found.files[file] = told["csv"].encode()
        line = _line(page, file, len(told["runs"]))
        html = out.data["text/html"]
        end = html.rindex("</figure>") if what == "figure" else len(html)
        out.data["text/html"] = html[:end] + line + html[end:]
        if told["runs"]:
            anchor = f"fig-{name}" if f'id="fig-{escape(name)}"' in html else f"data-{name}"
            if anchor.startswith("data-"):
                out.data["text/html"] = f'<span id="{escape(anchor)}"></span>' + out.data["text/html"]
            for digest in told["runs"]:
                found.shown.setdefault(digest, []).append(anchor)
    return found


def _line(page: Page, file: str, runs: int) -> str:
    links = [f'<a href="../_static/{escape(file)}" download="">Numbers (CSV)</a>']
    if runs:
        links.append(f'<a href="{page.name}.html#origin">{runs} recorded {"run" if runs == 1 else "runs"}</a>')
    return f'<p class="riembn-data">{" · ".join(links)}</p>'


def _below_data(name: str) -> str:
    return str(PurePosixPath(name).relative_to("data"))
