"""Whether each figure and table that is drawn from records says from which: its page then leads to them.

Read off the source of the chapters, by following what was read from records from name to name. What trains in the page
itself keeps its records in the folder of the profile smoke, and counts as computed there.
"""

import ast
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "book").glob("*.ipynb"))
READING = ("chapter.records(profile)", "chapter.benchmarks(")
SHOWING = ("pages.show", "pages.table")
SAYING = {"runs", "benchmarks"}
# Tables that lead to no record, by chapter and cell.
WITHOUT = {
    ("intro", "ledger"),  # a short form of the ledger in 16-claims, whose runs are listed there
    ("17-limits", "limits-04"),  # counts which runs have a record, and shows nothing of them
}


def named(node: ast.AST, how: type[ast.expr_context]) -> set[str]:
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, how)}


def inside(line: ast.stmt) -> set[str]:
    """Names that a statement has to itself: what loops run over, and what functions have."""
    found = set()
    for node in ast.walk(line):
        if isinstance(node, ast.comprehension | ast.For):
            found |= named(node.target, ast.Store)
        elif isinstance(node, ast.FunctionDef):
            found |= named(node, ast.Store)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
    return found


def changed(line: ast.stmt) -> Iterator[str]:
    """Names that a statement gives a value, and names of objects that it changes: ``found.append(1)``."""
    for node in ast.walk(line):
        if isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Call | ast.Subscript):
            whole: ast.AST = node.func if isinstance(node, ast.Call) else node
            base = whole
            while isinstance(base, ast.Attribute | ast.Subscript | ast.Call):
                base = base.func if isinstance(base, ast.Call) else base.value
            if base is not whole and isinstance(base, ast.Name):
                yield base.id


def statements(code: str) -> Iterator[ast.stmt]:
    """Those of a cell; ``a, b = 1, 2`` counts as two."""
    for line in ast.parse(code).body:
        match line:
            case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)):
                yield from (ast.Assign([name], value) for name, value in zip(names, values, strict=True))
            case _:
                yield line


def silent(cells: Iterable[tuple[str, str]]) -> list[str]:
    """Cells that show what was read from records and do not say from which; ``cells`` are names and sources."""
    drawn: set[str] = set()  # names of what comes from records
    imported: set[str] = set()
    found = []
    for name, code in cells:
        shows_records = False
        for line in statements(code):
            if isinstance(line, ast.Import | ast.ImportFrom):
                imported |= {(one.asname or one.name).partition(".")[0] for one in line.names}
                continue
            uses = bool((named(line, ast.Load) - inside(line)) & drawn)
            if uses or any(call in ast.unparse(ast.fix_missing_locations(line)) for call in READING):
                drawn |= set(changed(line)) - inside(line) - imported
            else:
                drawn -= named(line, ast.Store)
            shows_records |= uses
        calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
        shown = [{word.arg for word in call.keywords} for call in calls if ast.unparse(call.func) in SHOWING]
        if shows_records and not all(words & SAYING for words in shown):
            found.append(name)
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_drawn_from_records_says_from_which(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [(cell["id"], "".join(cell["source"])) for cell in cells if cell["cell_type"] == "code"]
    assert [name for name in silent(code) if (path.stem, name) not in WITHOUT] == []


READ = "n, store = 1, Store(chapter.records(profile))\nframe = store.frame()"


@pytest.mark.parametrize(
    ("cells", "wrong"),
    [
        ([READ, "pages.table(frame, caption='c')"], ["1"]),
        ([READ, "pages.table(frame, caption='c', runs=frame['digest'])"], []),
        ([READ, "pages.table(pandas.DataFrame({'n': [n]}), caption='c')"], []),
        (["a = chapter.benchmarks('step', device)", "ax.plot(a['sets'])\npages.show(fig, caption='c')"], ["1"]),
        ([READ, "kept = {}\nfor x in frame:\n    kept.setdefault(1, []).append(x)", "pages.table(kept)"], ["2"]),
        ([READ, "def of(x):\n    return frame[x]", "pages.table(of(1))"], ["2"]),
        ([READ, "rows = [2 * x for x in frame]", "rows = [x for x in (1, 2)]\npages.table(rows)"], []),
        (["store = Store(chapter.records('smoke'))", "pages.table(store.frame())"], []),
    ],
)
def test_a_table_of_records_is_told_from_one_that_is_computed(cells: list[str], wrong: list[str]) -> None:
    assert silent((str(index), code) for index, code in enumerate(cells)) == wrong
