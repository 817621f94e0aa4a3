"""The tables that the page on provenance asks for: chapters, versions, recorded runs, measurements."""

from __future__ import annotations

from collections import defaultdict
from importlib import metadata
from pathlib import Path

from nbformat import NotebookNode

from website import where
from website.benchmarks import benchmarks
from website.contents import Page
from website.digest import records
from website.endings import duration, runs, table, used
from website.opening import reading_minutes, recorded_times

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


def chapters(root: Path, notebooks: dict[Page, NotebookNode]) -> str:
    """A line a chapter: how long it takes to read and to run, and what it was made from."""
    rows = []
    times = recorded_times(root)
    for page, notebook in notebooks.items():
        told, took = notebook.metadata["riembn"], times.get(page.name, {})
        seconds = [duration(took[name]) if name in took else "–" for name in ("chapter", "slowest cell")]
        code = sum(cell.cell_type == "code" for cell in notebook.cells)
        numbers = (str(code), str(len(used(notebook)) or "–"))
        reading = f"{reading_minutes(notebook)}\N{NO-BREAK SPACE}min"
        made = (told["profile"], where.commit(told["environment"]))
        rows.append((f"[](/{page.document})", reading, *seconds, *numbers, *made))
    head = ("chapter", "to read", "to run", "slowest cell", "cells", "recorded runs", "profile", "commit")
    return table(head, rows)


def versions(notebooks: dict[Page, NotebookNode]) -> str:
    """Device, Python and packages that the chapters ran with."""
    ran = [notebook.metadata["riembn"]["environment"] for notebook in notebooks.values()]
    devices, pythons = (sorted(set(texts)) for texts in (map(where.device, ran), (one["python"] for one in ran)))
    rows = [("device", ", ".join(devices)), ("Python", ", ".join(pythons))]
    rows += [(name, metadata.version(name)) for name in SHOWN_VERSIONS]
    return table(("what", "which"), rows)


def recorded(root: Path, profile: str) -> str:
    """A line for each network, data set and method: how many runs, how many of them diverged, how long they took."""
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


def measured(root: Path) -> str:
    """A line for each record of ``ci/bench``."""
    rows = [(one.link(one.name), one.device, one.commit, one.versions) for one in benchmarks(root).values()]
    return table(("measurement", "device", "commit", "versions"), rows)
