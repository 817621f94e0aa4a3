"""Do the exercises of the chapters have solutions, and do the commands in them run?"""

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import papermill
import pytest

from riembn.pages import chapter

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "ci"))

from website.execute import environment  # noqa: E402

CHAPTERS = sorted((ROOT / "book").glob("[0-9]*.ipynb"))
BLOCK = re.compile(r"^(:{3,}|`{3,})\{(exercise|solution)\} ?(.*?)\n(.*?)^\1$", re.MULTILINE | re.DOTALL)


def text(path: Path) -> str:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def blocks(path: Path, kind: str) -> dict[str, str]:
    """Exercises by their labels, or solutions by the label of their exercise."""
    found = [(title, body) for _, what, title, body in BLOCK.findall(text(path)) if what == kind]
    if kind == "solution":
        return dict(found)
    labels = [re.findall(r"^:label: (\S+)$", body, re.MULTILINE) for _, body in found]
    return {label: body for (label,), (_, body) in zip(labels, found, strict=True)}


def commands(body: str) -> list[list[str]]:
    shell = "\n".join(re.findall(r"```bash\n(.*?)```", body, re.DOTALL)).replace("\\\n", " ")
    lines = map(shlex.split, shell.splitlines())
    return [words for words in lines if words and words[0].endswith("papermill")]


def given(words: list[str]) -> dict[str, str]:
    assert words[3::3] == ["-p"] * len(words[3::3]) and len(words) % 3 == 0, words
    return dict(zip(words[4::3], words[5::3], strict=True))


COMMANDS = [
    pytest.param(path, words, id=f"{path.stem}: {' '.join(words[3:])}")
    for path in CHAPTERS
    for words in commands(text(path))
]
FIRST = [next(param for param in COMMANDS if param.values[0] == path) for path in CHAPTERS]


def test_every_chapter_of_the_book_is_read() -> None:
    assert [path.stem[:2] for path in CHAPTERS] == [f"{number:02}" for number in range(1, 19)]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_two_exercises_have_solutions_with_a_command(path: Path) -> None:
    solutions, exercises = blocks(path, "solution"), blocks(path, "exercise")
    assert len(solutions) >= 2
    assert solutions.keys() == exercises.keys()
    for label in solutions:
        shell = re.findall(r"```bash\n(.*?)```", exercises[label] + solutions[label], re.DOTALL)
        assert re.search(r"^(papermill|python -m riembn) ", "\n".join(shell), re.MULTILINE), f"{label}: no command"


@pytest.mark.parametrize(("path", "words"), COMMANDS)
def test_commands_give_parameters_that_the_chapter_accepts(path: Path, words: list[str]) -> None:
    assert words[1:3] == [f"book/{path.stem}.ipynb", "out.ipynb"]
    declared = papermill.inspect_notebook(str(path))
    namespace = {name: ast.literal_eval(one["default"]) for name, one in declared.items()}
    before = dict(namespace)
    namespace |= given(words)
    assert namespace.keys() == declared.keys()
    # papermill reads numbers and truth values of its command line itself; the rest is the chapter's.
    for name, value in given(words).items():
        if declared[name]["inferred_type_name"] != "str":
            namespace[name] = ast.literal_eval(value)
    hints = {name: one["inferred_type_name"] for name, one in declared.items()}
    chapter.check(namespace | {"__annotations__": hints})
    assert namespace != before or not words[3:], "the exercise changes nothing"


@pytest.mark.slow
@pytest.mark.xdist_group("book")
@pytest.mark.parametrize(("path", "words"), FIRST)
def test_first_command_runs(path: Path, words: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out.ipynb"
    command = ["papermill", words[1], str(out), *words[3:], "-p", "profile", "smoke", "--no-progress-bar"]
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment(ROOT), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    parameters = json.loads(out.read_text(encoding="utf-8"))["metadata"]["papermill"]["parameters"]
    assert parameters.keys() == given(words).keys() | {"profile"}
