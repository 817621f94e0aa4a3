"""Lay out what the renderer gets to see: executed chapters with what is generated around them, pages, static files."""

from __future__ import annotations

import ast
import copy
import json
import re
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from website import benchmarks, networks, tables
from website.archive import archive, citation
from website.contents import BookError, Page
from website.digest import stores
from website.endings import ending, runs, used
from website.execute import executed
from website.front import MAP, chapter_map
from website.numbers import linked
from website.opening import opened
from website.reference import calls, described, homes, links


def stage(root: Path, pages: Sequence[Page], profile: str) -> None:
    """Bring ``_build/book`` up to date; a file that stays the same is not touched."""
    runs.cache_clear()
    static = root / "book" / "_static"
    wanted = {f"_static/{file.relative_to(static)}": file.read_bytes() for file in static.rglob("*") if file.is_file()}
    wanted |= {file.name: file.read_bytes() for file in (root / "book").glob("*.bib")}
    chapters = {page: nbformat.read(executed(root, page, profile), as_version=4) for page in pages if page.is_chapter}
    laid, known = {}, homes(pages)
    for page, notebook in chapters.items():
        laid[page] = copy.deepcopy(notebook)
        files = _around(root, page, laid[page], known)
        wanted |= {f"_static/{name}": content for name, content in files.items()}
        wanted[page.source.name] = (nbformat.writes(laid[page]) + "\n").encode()
    for page in pages:
        if not page.is_chapter:
            wanted[page.source.name] = _filled(root, page, chapters, laid, profile).encode()
    wanted |= _records(root, profile, set().union(*map(used, chapters.values())) if chapters else set())
    _sync(root / "_build" / "book", wanted)


def _around(root: Path, page: Page, notebook: NotebookNode, known: dict[str, str]) -> dict[str, bytes]:
    """Add to a chapter, in place, what a page has and a notebook has not; the files that go with it."""
    opened(root, page, notebook)  # before the map, whose labels are no text to read
    functions = links(calls(notebook, known), known)
    numbers = linked(root, page, notebook)
    end = nbformat.v4.new_markdown_cell(
        ending(root, page, notebook, numbers.shown, functions), id="generated-ending"
    )
    for cell in notebook.cells:
        if cell.cell_type == "code":
            tags = cell.metadata.setdefault("tags", [])
            if "injected-parameters" in tags:
                tags.append("remove-cell")  # the ending says it
            elif _only_shows(cell.source) and not {"remove-input", "hide-input", "parameters"} & set(tags):
                tags.append("hide-input")
        elif MAP in cell.source:
            cell.source = cell.source.replace(MAP, chapter_map(root))
    notebook.cells.append(end)
    return numbers.files


def _only_shows(source: str) -> bool:
    """Whether a cell is there to draw, to make a table, or to hand numbers to the text."""
    calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)}
    defines = any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in ast.parse(source).body)
    return not defines and any(re.fullmatch(r"pages\.(?!Globe)\w+|globe\.show|glue|say", call) for call in calls)


def _filled(
    root: Path, page: Page, chapters: dict[Page, NotebookNode], laid: dict[Page, NotebookNode], profile: str
) -> str:
    """A page of text, with generated tables and figures where it asks for them."""
    text = page.source.read_text(encoding="utf-8")
    made = {
        "<!-- chapters -->": lambda: tables.chapters(root, chapters),
        "<!-- versions -->": lambda: tables.versions(chapters),
        "<!-- runs -->": lambda: tables.recorded(root, profile),
        "<!-- measurements -->": lambda: tables.measured(root),
        "<!-- networks -->": lambda: networks.summary(root),
        **{f"<!-- networks of {name} -->": partial(networks.tried, root, name) for name in networks.SOURCES},
        "<!-- cite records -->": lambda: citation(root, _commit(root)),
    }
    for mark, make in made.items():
        if mark in text:
            text = text.replace(mark, make())
    text = described(text)
    figure = re.compile(r"<!-- figure: ([\w-]+) ([\w-]+) -->")
    return figure.sub(lambda asked: _figure(page, laid, asked[1], asked[2]), text)


def _figure(page: Page, laid: dict[Page, NotebookNode], chapter: str, name: str) -> str:
    """A chapter's figure, by the name that its ``pages.show`` gave it."""
    notebooks = [notebook for found, notebook in laid.items() if found.name == chapter]
    for cell in (cell for notebook in notebooks for cell in notebook.cells):
        for out in cell.get("outputs", []):
            drawn = out.get("data", {}).get("text/html", "")
            if f'id="fig-{name}"' in drawn:
                return str(drawn)
    raise BookError(f"{page.document}: asks for figure {name} of {chapter}, which does not exist.")


def _records(root: Path, profile: str, named: set[str]) -> dict[str, bytes]:
    """Each record that a page is drawn from, and all records in one file."""
    files, *others = [sorted(folder.glob("*.json")) for folder in stores(root, profile)]
    found = {
        f"_static/runs/{file.name}": _compact(file)
        for file in [*sum(others, []), *files]
        if file.stem.rpartition("-")[2] in named
    }
    measured = benchmarks.files(root)
    found |= {f"_static/benchmarks/{file.name}": _compact(file) for file in measured}
    found |= {f"_static/{name}": content for name, content in networks.numbers(root).items()}
    readme = root / "book" / "records" / "README.md"
    about = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    if (files or measured) and (root / "CITATION.cff").is_file():
        found["_static/records.zip"] = archive(files, measured, about, citation(root, _commit(root)))
    return found


def _compact(record: Path) -> bytes:
    """The same content without what only spaces it: a fifth less, hundreds of times."""
    content = json.loads(record.read_text(encoding="utf-8"))
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def _commit(root: Path) -> str:
    log = subprocess.run(["git", "log", "-1", "--format=%h"], cwd=root, capture_output=True, text=True, check=False)
    return log.stdout.strip() or "unknown"


def _sync(folder: Path, wanted: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file in [file for file in folder.rglob("*") if file.is_file()]:
        if file.relative_to(folder).as_posix() not in wanted:
            file.unlink()
    for name, content in wanted.items():
        target = folder / name
        if not target.is_file() or target.read_bytes() != content:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
