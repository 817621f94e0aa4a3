"""A new chapter: an ablation of some fields as a notebook that runs as it is, listed in the table of contents."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from riembn.experiment import preset
from riembn.experiment.config import FIELDS, acts
from riembn.experiment.fields import Options
from riembn.experiment.files import write_whole

FIRST, LAST = 19, 99  # numbers of chapters that are a fork's own

QUESTION = """# {title}

What does {field} do? This page varies it and compares, seed by seed.

**The claim.** Say here, in one sentence, what you expect, and where it is said: **{field} other than {baseline} ends
with a lower test error.**"""

DESIGN = """## The design

`vary` is what differs; all else is held. Each value is run with the same seeds, and compared with
`{field} = {baseline}`. Records that are there are read, the others are trained."""

SEE = """## What the runs say

Filled marks are means over seeds, open ones single runs."""

VERDICT = """## The verdict

It is decided by one rule for the whole book: Student's interval of the paired differences, and Holm's correction for
all comparisons of the table."""

END = """## What to take away

Say in two or three sentences what a reader should keep.

## What is not shown

- One network, one data set, short runs.
- Rates were not tuned for each value. A study tunes them with `tune=`; see [](18-fork).

Run it again with other values:

```bash
papermill book/{name}.ipynb out.ipynb -p profile smoke \\
    -p values {values}
```"""


def new_chapter(
    name: str,
    field: str,
    values: Sequence[Any],
    *,
    root: Path,
    start: str = "vgg-13/cifar10/sgd-g",
    plugin: str | Path | None = None,
) -> Path:
    """Write a chapter that varies a field, and its line in ``_toc.yml``.

    Args:
        name: Lower-case words with hyphens, ``momentum``; its number is the next that is free, from 19 on.
        field: What it varies: a field of `riembn.RunConfig`, ``method`` among them.
        values: Of the field; the first is the baseline.
        root: The repository.
        start: The preset that it starts from.
        plugin: A file whose additions it uses, within ``root``; see `riembn.additions.load_plugin`.

    Returns:
        The notebook.

    Raises:
        ValueError: If the name or the field is not accepted, or a chapter of that name is there.
    """
    if field not in FIELDS:
        raise ValueError(f"new-chapter: no field {field!r}; give one of {', '.join(FIELDS)}.")
    if len(values) < 2:
        raise ValueError(f"new-chapter: {field}={list(values)} is not accepted; give two or more, the baseline first.")
    config = preset(start)
    if field != "method" and not acts(config, field):
        raise ValueError(f"new-chapter: {field} does not act on {config.method}; give another --preset.")
    if field in ("seed", "code"):
        raise ValueError(f"new-chapter: {field} is not varied; give another field, seeds are a chapter's own.")
    plain = [_plain(getattr(config.replace(**{field: value}), field)) for value in values]  # refuses what a run would
    if any(plain.count(value) > 1 for value in plain):
        raise ValueError(f"new-chapter: {field}={plain} has a value twice; give each once.")
    if plugin is not None:
        plugin = (root / plugin).resolve()
        if not plugin.is_relative_to(root.resolve()):
            raise ValueError(f"new-chapter: {plugin} is not in {root}; put it there, so that the chapter goes with it.")
        plugin = plugin.relative_to(root.resolve()).as_posix()
    stem = _free_stem(name, root)
    return _written(stem, _notebook(name, _cells(stem, field, plain, start, plugin)), root)


def copied_chapter(name: str, source: str, *, root: Path) -> Path:
    """Write a chapter that is another one under a new name, with labels, figures and cell ids of its own.

    Args:
        name: As for `new_chapter`.
        source: The chapter to copy, ``09-clipping``.
        root: The repository.

    Returns:
        The notebook.

    Raises:
        ValueError: If the name is not accepted or taken, or there is no such chapter.
    """
    origin = root / "book" / f"{source}.ipynb"
    if not origin.is_file():
        there = ", ".join(path.stem for path in sorted((root / "book").glob("[0-9][0-9]-*.ipynb")))
        raise ValueError(f"new-chapter: there is no chapter {source!r}; there are {there}.")
    stem = _free_stem(name, root)
    old = source[3:]
    notebook = nbformat.reads(origin.read_text(encoding="utf-8"), as_version=4)
    for place, cell in enumerate(notebook.cells):
        text = cell.source.replace(source, stem)
        # labels, glued names and figures of a chapter begin with its noun
        text = re.sub(rf"(?<![\w/-]){re.escape(old)}-(?=[a-z0-9{{])", f"{name}-", text)
        text = re.sub(rf'(name=|say\()"{re.escape(old)}"', rf'\1"{name}"', text)
        cell.id, cell.source = f"{name}-{place:02d}", text
    return _written(stem, notebook, root)


def _plain(value: Any) -> Any:
    """A value as a notebook's cell has it."""
    return value.plain() if isinstance(value, Options) else value


def _free_stem(name: str, root: Path) -> str:
    """The next number and the name, if both can be had."""
    if not re.fullmatch(r"[a-z][a-z-]*[a-z]", name):
        raise ValueError(f"new-chapter: name {name!r} is not accepted; give lower-case words with hyphens: momentum.")
    taken = {path.stem[3:]: path.stem[:2] for path in (root / "book").glob("[0-9][0-9]-*.ipynb")}
    if name in taken:
        raise ValueError(f"new-chapter: book/{taken[name]}-{name}.ipynb is there; choose another name.")
    number = next(k for k in range(FIRST, LAST) if f"{k:02d}" not in taken.values())
    return f"{number:02d}-{name}"


def _written(stem: str, notebook: NotebookNode, root: Path) -> Path:
    path, toc = root / "book" / f"{stem}.ipynb", root / "_toc.yml"
    write_whole(path, (nbformat.writes(notebook) + "\n").encode())
    write_whole(toc, _listed(toc.read_text(encoding="utf-8"), stem).encode())
    return path


def _cells(
    stem: str, field: str, values: list[Any], start: str, plugin: str | Path | None
) -> list[tuple[str, str, list[str]]]:
    """Kind, text and tags of each cell."""
    (kind,) = {type(v).__name__ for v in values if v is not None}
    optional = any(v is None for v in values)
    hint = f"list[Optional[{kind}]]" if optional else f"list[{kind}]"
    say = {
        "title": stem[3:].replace("-", " ").capitalize(),
        "field": field,
        "baseline": repr(values[0]),
        "name": stem,
        "values": shlex.quote(text if '"' in (text := repr(values)) else text.replace("'", '"')),
    }
    imports = "from typing import Optional\n\n" if optional else ""
    parameters = (
        f'{imports}profile: str = "smoke"  # smoke (digits, a minute), laptop or paper (full size)\n'
        f"values: {hint} = {values!r}  # of {field}; the first is the baseline\n"
        "seeds: list[int] = [0, 1, 2]  # one run a seed and value\n"
        "jobs: int = 2  # runs side by side, where records are missing"
    )
    load = f'load_plugin(chapter.repository("load_plugin") / {json.dumps(str(plugin))})\n' if plugin else ""
    from_file = "from riembn.additions import load_plugin\n" if plugin else ""
    checks = (
        f"import riembn\nfrom riembn import pages\n{from_file}from riembn.pages import chapter\n\n"
        f"chapter.check(globals())\n{load}"
    ).rstrip()
    base = f'riembn.preset("{start}", profile=profile)'
    if field == "method":
        study = f"study = riembn.Study(\n    {base},\n    methods=values, baseline=values[0], seeds=seeds,\n)"
    else:
        study = (
            f'study = riembn.Study(\n    {base},\n    vary={{"{field}": values}}, baseline={{"{field}": values[0]}},'
            "\n    seeds=seeds,\n)"
        )
    run = f"{study}\nframe = study.run(chapter.records(profile), n_jobs=jobs)\npages.design(study, frame)"
    return [
        ("markdown", QUESTION.format(**say), []),
        ("code", parameters, ["parameters"]),
        ("code", checks, ["hide-input"]),
        ("markdown", DESIGN.format(**say), []),
        ("code", run, []),
        ("markdown", SEE.format(**say), []),
        ("code", f'pages.ablation(study, frame, ["test_error", "train_loss"], name="{stem[3:]}")', ["hide-input"]),
        ("markdown", "The differences behind the figure:", []),
        ("code", "found = study.compare(frame)\npages.comparisons(found, study)", []),
        ("markdown", VERDICT.format(**say), []),
        ("code", "_ = pages.verdict(found, study)", []),
        ("markdown", END.format(**say), []),
    ]


def _notebook(name: str, cells: list[tuple[str, str, list[str]]]) -> NotebookNode:
    new = {"code": new_code_cell, "markdown": new_markdown_cell}
    made = [
        new[kind](text, id=f"{name}-{place:02d}", metadata={"tags": tags} if tags else {})
        for place, (kind, text, tags) in enumerate(cells)
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return new_notebook(cells=made, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})


def _listed(contents: str, stem: str) -> str:
    """The table of contents with the chapter after the last one that has a number."""
    lines = contents.splitlines(keepends=True)
    last = max(place for place, line in enumerate(lines) if re.search(r"file: book/\d\d-", line))
    indent = lines[last][: len(lines[last]) - len(lines[last].lstrip())]
    return "".join([*lines[: last + 1], f"{indent}- file: book/{stem}\n", *lines[last + 1 :]])
