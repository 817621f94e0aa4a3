"""What does the renderer get to see? Executed chapters with their endings, other pages, static files."""

from __future__ import annotations

import copy
import re
import shutil
from collections import defaultdict
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from riembn.pages.chapter import RUNS
from website.contents import BookError, Page
from website.endings import commit, duration, ending, records, runs, seconds, table, used
from website.execute import executed

SHOWN_VERSIONS = (
    "torch",
    "torchvision",
    "numpy",
    "scikit-learn",
    "pandas",
    "matplotlib",
    "papermill",
    "jupyter-book",
)


def stage(root: Path, pages: Sequence[Page], profile: str) -> None:
    """Fill ``_build/book`` afresh."""
    folder = root / "_build" / "book"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(root / "book" / "_static", folder / "_static")
    for bibliography in (root / "book").glob("*.bib"):
        shutil.copy(bibliography, folder)
    runs.cache_clear()
    chapters = {page: _read(root, page, profile) for page in pages if page.is_chapter}
    for page in pages:
        target = root / "_build" / page.source.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        if page in chapters:
            nbformat.write(_with_ending(root, page, chapters[page]), target)
        else:
            target.write_text(_filled(root, page, chapters, profile), encoding="utf-8")


def _read(root: Path, page: Page, profile: str) -> NotebookNode:
    return nbformat.read(executed(root, page, profile), as_version=4)


def _with_ending(root: Path, page: Page, notebook: NotebookNode) -> NotebookNode:
    notebook = copy.deepcopy(notebook)
    end = nbformat.v4.new_markdown_cell(ending(root, page, notebook), id="generated-ending")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            # told to us, not to the reader
            cell.outputs = [out for out in cell.outputs if RUNS not in out.get("data", {})]
            if "injected-parameters" in cell.metadata.get("tags", []):
                cell.metadata.tags.append("remove-cell")  # the ending says it
    notebook.cells.append(end)
    return notebook


def _filled(root: Path, page: Page, chapters: dict[Page, NotebookNode], profile: str) -> str:
    """A page of text, with generated tables where it asks for them."""
    text = page.source.read_text(encoding="utf-8")
    tables = {
        "<!-- chapters -->": lambda: _chapters(chapters),
        "<!-- versions -->": lambda: _versions(chapters),
        "<!-- runs -->": lambda: _runs(root, profile),
    }
    for mark, make in tables.items():
        if mark in text:
            text = text.replace(mark, make())
    figure = re.compile(r"<!-- figure: ([\w-]+) ([\w-]+) -->")
    return figure.sub(lambda asked: _figure(page, chapters, asked[1], asked[2]), text)


def _figure(page: Page, chapters: dict[Page, NotebookNode], chapter: str, name: str) -> str:
    """A chapter's figure, by the name that its ``pages.show`` gave it."""
    notebooks = [notebook for found, notebook in chapters.items() if found.name == chapter]
    for cell in (cell for notebook in notebooks for cell in notebook.cells):
        for out in cell.get("outputs", []):
            drawn = out.get("data", {}).get("text/html", "")
            if f'id="fig-{name}"' in drawn:
                return str(drawn)
    raise BookError(f"{page.document}: asks for figure {name} of {chapter}, which does not exist.")


def _chapters(chapters: dict[Page, NotebookNode]) -> str:
    rows = []
    for page, notebook in chapters.items():
        told = notebook.metadata["riembn"]
        slowest = max(
            (c.metadata.get("papermill", {}).get("duration") or 0.0 for c in notebook.cells), default=0.0
        )
        where = told["environment"]
        times = (duration(seconds(notebook)), duration(slowest))
        rows.append(
            (f"[](/{page.document})", told["profile"], *times, str(len(used(notebook)) or "–"), commit(where))
        )
    return table(("chapter", "profile", "time", "slowest cell", "recorded runs", "commit"), rows)


def _versions(chapters: dict[Page, NotebookNode]) -> str:
    where = [notebook.metadata["riembn"]["environment"] for notebook in chapters.values()]
    devices = sorted({one["cpu"] if one["device"] == "cpu" else one["device"] for one in where})
    rows = [("device", ", ".join(devices)), ("Python", ", ".join(sorted({one["python"] for one in where})))]
    rows += [(name, metadata.version(name)) for name in SHOWN_VERSIONS]
    return table(("what", "which"), rows)


def _runs(root: Path, profile: str) -> str:
    groups = defaultdict(list)
    for run in runs(records(root, profile)).values():
        groups[run.config["network"], run.config["dataset"], run.config["method"]].append(run)
    if not groups:
        return "There are no recorded runs."
    rows = []
    for what, members in sorted(groups.items()):
        ended = sum(run.status == "finished" for run in members)
        rows.append(
            (
                *what,
                str(len(members)),
                str(len(members) - ended),
                str(len({run.seed for run in members})),
                duration(sum(run.seconds for run in members)),
                ", ".join(sorted({run.commit for run in members})),
            )
        )
    head = ("network", "data", "method", "runs", "diverged", "seeds", "training time", "commits")
    return table(head, rows)
