"""Under each figure and table: the file with its numbers, and the way to the records that it is drawn from."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from pathlib import Path, PurePosixPath

from nbformat import NotebookNode

from riembn.pages.drawn import DATA
from website.benchmarks import benchmarks
from website.contents import BookError, Page


@dataclass
class Numbers:
    """What is behind the figures and tables of a page."""

    files: dict[str, bytes] = field(default_factory=dict)  # CSV, by their place below ``_static``
    shown: dict[str, list[str]] = field(default_factory=dict)  # anchors by digest of a run or name of a benchmark


def linked(root: Path, page: Page, notebook: NotebookNode) -> Numbers:
    """Put links under each figure and table of the notebook, and an anchor at each that is drawn from records."""
    found, measured = Numbers(), benchmarks(root)
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
        if gone := set(told["benchmarks"]) - measured.keys():
            raise BookError(f"{page.name}: {name} is drawn from {gone.pop()}, which book/benchmarks has no record of.")
        links = [_runs(page, len(told["runs"]))] if told["runs"] else []
        line = below(file, *links, *(measured[one].link() for one in told["benchmarks"]))
        html = out.data["text/html"]
        end = html.rindex("</figure>") if what == "figure" else len(html)
        out.data["text/html"] = html[:end] + line + html[end:]
        if records := [*told["runs"], *told["benchmarks"]]:
            anchor = f"fig-{name}" if f'id="fig-{escape(name)}"' in html else f"data-{name}"
            if anchor.startswith("data-"):
                out.data["text/html"] = f'<span id="{escape(anchor)}"></span>' + out.data["text/html"]
            for record in records:
                found.shown.setdefault(record, []).append(anchor)
    return found


def below(file: str, *links: str) -> str:
    """The line below a figure or table: its numbers, a file below ``_static``, and links to its records."""
    numbers = f'<a href="../_static/{escape(file)}" download="">Numbers (CSV)</a>'
    return f'<p class="riembn-data">{" · ".join([numbers, *links])}</p>'


def _runs(page: Page, count: int) -> str:
    return f'<a href="{page.name}.html#origin">{count} recorded {"run" if count == 1 else "runs"}</a>'


def _below_data(name: str) -> str:
    return str(PurePosixPath(name).relative_to("data"))
