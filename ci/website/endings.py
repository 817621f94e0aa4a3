"""Write the end of each chapter: how to rerun it, and where its results come from.

Nothing here is typed by hand: it is read from the parameters cell, from what papermill noted down, and from
the records that its figures and tables say they are drawn from.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import papermill
from nbformat import NotebookNode

from riembn.pages.drawn import DATA
from website import where
from website.benchmarks import Benchmark, benchmarks
from website.contents import BookError, Page
from website.digest import stores


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell, and the value the chapter was run with."""

    name: str
    hint: str
    default: str
    meaning: str
    value: str


@dataclass(frozen=True)
class Run:
    """What the page says about one recorded run."""

    name: str
    digest: str
    seed: int
    commit: str
    device: str
    seconds: float
    config: dict[str, Any]
    status: str


def parameters(page: Page, notebook: NotebookNode) -> list[Parameter]:
    """The parameters of a chapter as declared, with the values of this run."""
    given = notebook.metadata["papermill"]["parameters"]
    declared = papermill.inspect_notebook(str(page.source)).values()
    return [
        Parameter(
            name=one["name"],
            hint=one["inferred_type_name"],
            default=one["default"],
            meaning=one["help"],
            value=str(given.get(one["name"], one["default"])).strip("\"'"),
        )
        for one in declared
    ]


def used(notebook: NotebookNode) -> set[str]:
    """Digests of the runs that the figures and tables of the chapter are drawn from."""
    outputs = (out.get("data", {}) for cell in notebook.cells for out in cell.get("outputs", []))
    return {digest for data in outputs if DATA in data for digest in data[DATA]["runs"]}


@cache
def runs(folder: Path) -> dict[str, Run]:
    """The records in a folder by their digests."""
    found = {}
    for file in sorted(folder.glob("*.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        on = record["environment"]
        found[record["digest"]] = Run(
            name=file.stem,
            digest=record["digest"],
            seed=record["config"]["seed"],
            commit=where.commit(on),
            device=where.device(on),
            seconds=on.get("wall_seconds") or 0.0,
            config=record["config"],
            status=record["status"],
        )
    return found


def ending(
    root: Path, page: Page, notebook: NotebookNode, shown: Mapping[str, Sequence[str]], functions: str = ""
) -> str:
    """The Markdown that ends the page.

    Args:
        root: Of the repository.
        page: The chapter.
        notebook: As papermill left it.
        shown: The records that it is drawn from: anchors of the figures and tables with them, by the digest of a run
            or the name of a benchmark.
        functions: Links to the functions that it calls.
    """
    told = notebook.metadata["riembn"]
    kept = {digest: run for folder in stores(root, told["profile"])[::-1] for digest, run in runs(folder).items()}
    measured = benchmarks(root)
    if gone := shown.keys() - kept.keys() - measured.keys():
        raise BookError(
            f"{page.name}: drawn from {len(shown)} records, of which {len(gone)} are not there any more; "
            f"run it again: ci/book {page.name}"
        )
    mine = [run for digest, run in kept.items() if digest in shown]
    beside = [one for name, one in measured.items() if name in shown]
    declared = parameters(page, notebook)
    uses = [f"Functions used on this page: {functions}."] if functions else []
    strip = _strip(notebook, mine, beside, text_date(root, page))
    return "\n\n".join([*uses, strip, _rerun(page, declared), _origin(notebook, mine, beside, shown)])


def text_date(root: Path, page: Page) -> str:
    """The day of the last commit that changed the chapter; empty of one that was never committed."""
    log = subprocess.run(
        ["git", "log", "-1", "--format=%cs", "--", str(page.source)],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    return log.stdout.strip()


def duration(seconds: float) -> str:
    """A time as one reads it: ``14 s``, ``3 min``, ``2.4 h``, with a space that no line breaks at."""
    if seconds < 100:
        return f"{seconds:.0f}\N{NO-BREAK SPACE}s"
    size, unit = (seconds / 60, "min") if seconds < 6000 else (seconds / 3600, "h")
    return f"{size:.{unit.count('h')}f}\N{NO-BREAK SPACE}{unit}"


def _strip(notebook: NotebookNode, mine: list[Run], measured: list[Benchmark], date: str) -> str:
    told = notebook.metadata["riembn"]
    on = told["environment"]
    items = [f"profile {told['profile']}"]
    if mine:
        seeds = len({run.seed for run in mine})
        items.append(f"{len(mine)} recorded runs, {seeds} {'seed' if seeds == 1 else 'seeds'}")
    if measured:
        items.append(f"measured on {_each(one.device for one in measured)}")
    items += [f"commit {where.commit(on)}", f"torch {on['torch']}"] + ([f"text of {date}"] if date else [])
    return ":::{div} provenance\n" + " · ".join(items) + "\n:::"


def _rerun(page: Page, declared: list[Parameter]) -> str:
    options = [f"-p {one.name} {_quoted(one.value)}" for one in declared]
    meanings = table(
        ("parameter", "type", "default", "meaning"),
        [(f"`{one.name}`", f"`{one.hint}`", f"`{one.default}`", one.meaning) for one in declared],
    )
    return "\n".join(
        [
            "::::{dropdown} Rerun this chapter",
            ":class-container: rerun",
            "",
            "From the root of the repository, with its environment active (`source .venv/bin/activate`);",
            "change any value:",
            "",
            "```bash",
            " \\\n    ".join([f"papermill book/{page.name}.ipynb out.ipynb", *options]),
            "```",
            "",
            meanings,
            "::::",
        ]
    )


def _each(texts: Iterable[str]) -> str:
    return ", ".join(sorted(set(texts)))


def _origin(
    notebook: NotebookNode, mine: list[Run], measured: list[Benchmark], shown: Mapping[str, Sequence[str]]
) -> str:
    on = notebook.metadata["riembn"]["environment"]
    rows = [
        ("commit", where.commit(on) + (" with changes that were not committed" if on["dirty"] else "")),
        ("device", where.device(on)),
        ("versions", where.versions(on)),
    ]
    if mine:
        seeds = ", ".join(str(seed) for seed in sorted({run.seed for run in mine}))
        hours = duration(sum(run.seconds for run in mine))
        rows += [
            ("recorded runs", f"{len(mine)}, seeds {seeds}, {hours} of training"),
            ("recorded on", f"{_each(run.device for run in mine)}; commit {_each(run.commit for run in mine)}"),
        ]
    items = [f"{name}\n: {text}\n" for name, text in rows]
    lines = [*items, *_runs(mine, shown), *_benchmarks(measured, shown)]
    if mine or measured:
        whole = '<a href="../_static/records.zip" download="">All records of the book in one file</a>'
        lines += [f"{whole}, with what each field means.", ""]
    return "\n".join(
        [
            '<span id="origin"></span>',
            "",
            "::::{dropdown} Where this page comes from",
            ":class-container: rerun",
            "",
            *lines,
            "::::",
        ]
    )


def _runs(mine: list[Run], shown: Mapping[str, Sequence[str]]) -> list[str]:
    """The recorded runs, each with its file and with what is drawn from it."""
    rows = [
        (
            f'<a href="../_static/runs/{run.name}.json" download="">{run.name}</a>',
            _places(shown[run.digest]), run.commit, duration(run.seconds),
        )  # fmt: skip
        for run in sorted(mine, key=lambda run: run.name)
    ]
    head = ("run", "shown in", "commit", "training")
    if len(rows) > 1 and len({places for _, places, *_ in rows}) == 1:
        short = [(run, *rest) for run, _, *rest in rows]
        return [f"Each is shown in {rows[0][1]}.", "", table((head[0], *head[2:]), short), ""]
    return [table(head, rows), ""] if rows else []


def _benchmarks(measured: list[Benchmark], shown: Mapping[str, Sequence[str]]) -> list[str]:
    """The records of ``ci/bench``, likewise."""
    rows = [(one.link(one.name), _places(shown[one.name]), one.device, one.commit, one.versions) for one in measured]
    return [table(("measurement", "shown in", "device", "commit", "versions"), rows), ""] if rows else []


def _places(anchors: Sequence[str]) -> str:
    return ", ".join(f'<a href="#{anchor}">{anchor.partition("-")[2]}</a>' for anchor in anchors)


def _quoted(value: str) -> str:
    plain = value.replace(".", "").replace("-", "").replace("_", "").isalnum()
    return value if plain else '"' + value.replace('"', "'") + '"'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)
