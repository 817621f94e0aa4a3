"""What every chapter of the book has to look like before it is run."""

import ast
import builtins
import json
import re
import typing
from functools import cache
from pathlib import Path
from typing import Any

import papermill
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))
SHOWN = (
    "pages.show", "globe.show", "pages.table", "pages.design", "pages.ablation", "pages.outcome", "pages.say", "print",
)

pytestmark = pytest.mark.skipif(not NOTEBOOKS, reason="the book has no chapter yet")
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@cache
def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    return [cell for cell in read(path)["cells"] if cell["cell_type"] == kind]


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def tags(cell: dict[str, Any]) -> list[str]:
    return cell["metadata"].get("tags", [])


def parameters_cell(path: Path) -> dict[str, Any]:
    (cell,) = [cell for cell in cells(path, "code") if "parameters" in tags(cell)]
    return cell


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """Each call in the chapter, by the dotted name of what is called."""
    nodes = [node for cell in cells(path, "code") for node in ast.walk(ast.parse(source(cell)))]
    return [(ast.unparse(node.func), node) for node in nodes if isinstance(node, ast.Call)]


@each
def test_source_holds_no_output(path: Path) -> None:
    for cell in cells(path, "code"):
        assert cell["outputs"] == [] and cell["execution_count"] is None, cell["id"]
        assert not {"papermill", "execution", "ExecuteTime"} & cell["metadata"].keys(), cell["id"]
    assert "papermill" not in read(path)["metadata"]


@each
def test_cells_have_ids_of_their_own(path: Path) -> None:
    notebook = read(path)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert notebook["nbformat"] == 4 and notebook["nbformat_minor"] >= 5
    assert len(ids) == len(set(ids))


@each
def test_kernel_is_python3(path: Path) -> None:
    assert read(path)["metadata"]["kernelspec"]["name"] == "python3"


@each
def test_chapter_is_named_by_two_digits_and_a_noun_and_listed(path: Path) -> None:
    assert re.fullmatch(r"\d\d-[a-z][a-z-]*|intro", path.stem)
    assert f"book/{path.stem}" in re.findall(r"book/[\w-]+", (ROOT / "_toc.yml").read_text(encoding="utf-8"))


@each
def test_title_is_the_only_first_level_heading(path: Path) -> None:
    text = re.sub(r"```.*?```", "", "\n\n".join(map(source, cells(path, "markdown"))), flags=re.DOTALL)
    assert text.startswith("# ")
    assert len(re.findall(r"^# ", text, flags=re.MULTILINE)) == 1


@each
def test_parameters_use_hints_that_papermill_reads(path: Path) -> None:
    body = ast.parse(source(parameters_cell(path))).body
    declared = [line for line in body if not isinstance(line, ast.ImportFrom)]
    assert all(isinstance(line, ast.AnnAssign) and line.value for line in declared), "annotate each parameter"
    hints = {ast.unparse(line.target): ast.unparse(line.annotation) for line in declared}
    assert hints["profile"] == "str"
    read_by_papermill = papermill.inspect_notebook(str(path))
    assert {name: one["inferred_type_name"] for name, one in read_by_papermill.items()} == hints
    for name, one in read_by_papermill.items():
        assert one["help"], f"{name}: say in a comment what it means"
        eval(hints[name], {**vars(builtins), **vars(typing)})


@each
def test_parameters_are_checked_before_anything_else(path: Path) -> None:
    code = cells(path, "code")
    place = code.index(parameters_cell(path))
    assert place == 0, "the parameters come first"
    body = ast.parse(source(code[1])).body
    first = next(line for line in body if not isinstance(line, ast.Import | ast.ImportFrom))
    assert ast.unparse(first).startswith("chapter.check(globals()")


@each
def test_cells_are_short(path: Path) -> None:
    code = cells(path, "code")
    assert len([cell for cell in code if "hide-input" not in tags(cell)]) <= 20  # folded ones not counted
    for cell in code:
        lines = source(cell).splitlines()
        assert len(lines) <= 25, cell["id"]
        if "parameters" not in tags(cell):  # whose long comments the page wraps
            assert not [line for line in lines if len(line) > 110], f"{cell['id']}: lines that a page cuts off"
        for node in ast.walk(ast.parse(source(cell))):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno is not None and node.end_lineno - node.lineno < 12, node.name


@each
def test_imports_are_few(path: Path) -> None:
    lines = [line for cell in cells(path, "code") for line in source(cell).splitlines()]
    assert sum(line.lstrip().startswith(("import ", "from ")) for line in lines) <= 7


@each
def test_something_is_shown_early(path: Path) -> None:
    early = cells(path, "code")[1:4]
    called = [
        ast.unparse(node.func)
        for cell in early
        for node in ast.walk(ast.parse(source(cell)))
        if isinstance(node, ast.Call)
    ]
    last = [ast.parse(source(cell)).body[-1] for cell in early]
    assert set(called) & set(SHOWN) or any(
        isinstance(line, ast.Expr) and not isinstance(line.value, ast.Call) for line in last
    )


@each
def test_prose_stands_before_code(path: Path) -> None:
    kinds = [cell["cell_type"] for cell in read(path)["cells"]]
    assert kinds[0] == "markdown" and kinds[-1] == "markdown"
    assert not re.search(r"(code ){4}", " ".join(kinds) + " "), "four code cells without a word between them"


@each
def test_figures_have_caption_and_text(path: Path) -> None:
    for name, call in calls(path):
        if name in ("pages.show", "globe.show"):
            given = {keyword.arg for keyword in call.keywords}
            assert {"caption", "alt"} <= given, ast.unparse(call)
        if name == "pages.table":
            assert "caption" in {keyword.arg for keyword in call.keywords}, ast.unparse(call)


@each
def test_figures_take_the_ways_of_the_book(path: Path) -> None:
    text = "\n".join(map(source, cells(path, "code")))
    for word in ("matplotlib", "plt.", "plotly", "ipywidgets", "tqdm.notebook", "%matplotlib", "savefig", "myst_nb"):
        assert word not in text, word


@each
def test_chance_is_seeded(path: Path) -> None:
    for name, call in calls(path):
        if name.endswith("default_rng") or name.endswith("manual_seed"):
            assert call.args or call.keywords, f"{ast.unparse(call)}: give it a seed"
    text = "\n".join(map(source, cells(path, "code")))
    assert not re.search(
        r"\bnp\.random\.(?!default_rng|Generator)|^\s*(import|from) random\b", text, re.MULTILINE
    )


@each
def test_nothing_depends_on_this_machine_or_on_another_one(path: Path) -> None:
    for cell in read(path)["cells"]:
        text = source(cell)
        assert not re.search(r"(?<![\w./:])/(home|root|work|tmp|usr|Users|mnt|opt|var)/", text), cell["id"]
        assert not re.search(r"!\[[^\]]*\]\(https?:|<(img|script|iframe|link)[^>]+https?:", text), cell["id"]
        if cell["cell_type"] == "code":
            assert not re.search(r"https?://|^\s*[!%]", text, flags=re.MULTILINE), cell["id"]


@each
def test_images_have_a_text(path: Path) -> None:
    for cell in cells(path, "markdown"):
        assert not re.search(r"!\[\s*\]\(", source(cell)), cell["id"]


@each
def test_no_line_of_text_is_a_comment(path: Path) -> None:
    for cell in cells(path, "markdown"):
        assert not re.search(r"^\s*%", source(cell), flags=re.MULTILINE), f"{cell['id']}: a line of MyST begins with %"


FOLDED = {"hide-input", "remove-input", "parameters"}  # or broken at a word


@each
def test_commands_and_code_fit_the_page(path: Path) -> None:
    """So many signs does a line of the page hold; a longer one is broken where it happens to be full."""
    for cell in read(path)["cells"]:
        if cell["cell_type"] == "code" and FOLDED & set(cell["metadata"].get("tags", [])):
            continue
        text = source(cell)
        if cell["cell_type"] == "markdown":
            fenced = re.findall(r"^```\w*\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
            text = "\n".join([*fenced, *re.findall(r"^    .*$", text, flags=re.MULTILINE)])
        for line in text.splitlines():
            assert len(line) <= 90, f"{cell['id']}: {line}"


@each
def test_chapter_says_what_it_has_not_shown(path: Path) -> None:
    headings = re.findall(
        r"^##+ (.*)$", "\n\n".join(map(source, cells(path, "markdown"))), flags=re.MULTILINE
    )
    assert any("not shown" in heading.lower() for heading in headings)


def test_contents_list_files_that_exist() -> None:
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    listed = [entry["file"] for part in contents["parts"] for entry in part["chapters"]]
    for document in [contents["root"], *listed]:
        assert (ROOT / f"{document}.ipynb").is_file() or (ROOT / f"{document}.md").is_file(), document
    assert len(listed) == len(set(listed))
