"""A chapter that a fork writes by one command passes the tests of chapters, and builds at the first try."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import test_notebooks
import yaml

import riembn
from riembn.__main__ import main
from riembn.pages.new_chapter import copied_chapter, new_chapter

ROOT = Path(__file__).resolve().parents[2]

PLUGIN = """
import riembn, torch

riembn.methods["adamw-all"] = riembn.Method(optimizer=torch.optim.AdamW, lr=0.002, kind="whole")
"""


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """The repository's book in a folder of its own."""
    root = tmp_path / "clone"
    for name in ("book", "ci", "riembn"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "records", "tests"))
    for name in ("_toc.yml", "_config.yml", "requirements.txt", "pyproject.toml", "README.md", "CITATION.cff"):
        shutil.copy(ROOT / name, root / name)
    (root / "book" / "records").mkdir()
    monkeypatch.chdir(root)
    return root


def lint(path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test that a chapter of the book has to pass."""
    monkeypatch.setattr(test_notebooks, "ROOT", root)
    for name, check in vars(test_notebooks).items():
        if name.startswith("test_") and "path" in check.__code__.co_varnames[: check.__code__.co_argcount]:
            check(path)


SMALL_BOOK = """format: jb-book
root: book/start
parts:
  - caption: Chapters
    chapters:
      - file: book/18-fork
"""


@pytest.mark.slow
def test_new_chapters_build_at_the_first_try(copy, monkeypatch):
    # A book of the new chapters alone: the others are built by ci/book.
    for path in (copy / "book").glob("[0-9][0-9]-*.ipynb"):
        path.unlink()
    (copy / "book" / "start.md").write_text("# A book\n\nOf new chapters.\n")
    (copy / "book" / "18-fork.md").write_text("# Fork\n\nHow to.\n")
    (copy / "_toc.yml").write_text(SMALL_BOOK)
    (copy / "mine.py").write_text(PLUGIN)
    words = [
        ["momentum", "--vary", "momentum=0.9,0.5"],
        ["batch-size", "--vary", "batch_size=64,128"],
        ["optimizer", "--vary", "method=sgd,adamw-all", "--plugin", "mine.py"],
    ]
    for one in words:
        done = subprocess.run(
            [sys.executable, "-m", "riembn", "new-chapter", *one], cwd=copy, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    stems = ["19-momentum", "20-batch-size", "21-optimizer"]
    for stem in stems:
        lint(copy / "book" / f"{stem}.ipynb", copy, monkeypatch)
    paths = {"PYTHONPATH": os.pathsep.join([str(copy), str(copy / "ci")])}
    done = subprocess.run(
        [sys.executable, "-m", "website", "--profile", "smoke", *stems],
        cwd=copy, env={**os.environ, **paths}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    for stem in stems:
        page = (copy / "_build" / "html" / "book" / f"{stem}.html").read_text()
        assert "Verdict, at preset rates" in page and "<svg" in page


@pytest.mark.parametrize("source", ["09-clipping", "10-alpha"])
def test_copied_chapter_has_labels_of_its_own(copy, monkeypatch, source):
    path = copied_chapter("mine", source, root=copy)
    assert path.stem == "19-mine"
    lint(path, copy, monkeypatch)
    old = source[3:]
    text = "".join("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"])
    assert not re.search(rf"(?<![\w/]){old}-[a-z{{]", text) and source not in text
    assert f'say("{old}"' not in text
    listed = [c["file"] for part in yaml.safe_load((copy / "_toc.yml").read_text())["parts"] for c in part["chapters"]]
    assert listed.count("book/19-mine") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["Momentum", "--vary", "momentum=0,0.9"], "name 'Momentum' is not accepted"),
        (["clipping", "--vary", "grad_clip=0.1,none"], "book/09-clipping.ipynb is there"),
        (["mine", "--vary", "momentum=0.9"], "momentum=[0.9] is not accepted; give two or more"),
        (["mine", "--vary", "beta2=0.9,0.99"], "beta2 does not act on sgd-g"),
        (["mine", "--vary", "momentum=0.9,2"], "momentum=2.0 is not accepted"),
        (["mine", "--vary", "momentum=0.9,0.90"], "has a value twice"),
        (["mine", "--vary", "seed=0,1"], "seed is not varied"),
        (["mine", "--vary", "momentum=0.9,0", "--vary", "momentum=0.5,0.6"], "a second field goes into vary=… of"),
        (["mine"], "give --vary FIELD=A,B or --from CHAPTER"),
        (["mine", "--from", "09-clipping", "--preset", "vgg-11/digits/sgd"], "--from copies a chapter as it is"),
        (["mine", "--from", "77-nothing"], "there is no chapter '77-nothing'"),
    ],
)
def test_chapter_that_cannot_be_is_refused_in_one_line(copy, capsys, words, message):
    before = sorted(path.name for path in (copy / "book").iterdir()), (copy / "_toc.yml").read_text()
    assert main(["new-chapter", *words]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert before == (sorted(path.name for path in (copy / "book").iterdir()), (copy / "_toc.yml").read_text())


@pytest.mark.parametrize(
    ("field", "values", "hint"),
    [
        ("options", [{}, {"foreach": True}], "list[dict] = [{}, {'foreach': True}]"),
        ("drops", [(), (1, 2)], "list[tuple] = [(), (1, 2)]"),
        ("nesterov", [True, False], "list[bool] = [True, False]"),
        ("method", ["sgd", "sgd-g"], "list[str] = ['sgd', 'sgd-g']"),
        ("grad_clip", [0.1, None], "list[Optional[float]] = [0.1, None]"),
    ],
)
def test_values_of_every_kind_are_accepted_by_their_chapter(copy, monkeypatch, field, values, hint):
    monkeypatch.setattr("riembn.pages.chapter._refuse_another_clone", lambda: None)  # the copy has no own process
    path = new_chapter("mine", field, values, root=copy)
    cells = ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]]
    assert hint in cells[1]
    namespace: dict = {}
    exec(cells[1], namespace)
    exec(cells[2], namespace)
    exec(cells[4].partition("frame =")[0], namespace)
    assert len(namespace["study"].cells) == 2
    # What the last cell says to type arrives as text, through a shell.
    command = re.search(r"papermill .*\n.*", cells[-1])[0]
    namespace["values"] = shlex.split(command)[-1]
    exec(cells[2], namespace)
    assert namespace["values"] == values


def test_plugin_is_found_from_every_folder_of_the_repository(copy, monkeypatch):
    (copy / "mine.py").write_text(PLUGIN)
    monkeypatch.chdir(copy / "book")
    try:
        words = ["--vary", "method=sgd,adamw-all", "--plugin", "../mine.py"]
        assert main(["new-chapter", "optimizer", *words]) == 0
        cells = json.loads((copy / "book" / "19-optimizer.ipynb").read_text())["cells"]
        assert 'load_plugin(chapter.repository("load_plugin") / "mine.py")' in "".join(cells[2]["source"])
    finally:
        riembn.methods.pop("adamw-all", None)


def test_values_keep_their_type(copy):
    path = new_chapter("clip", "grad_clip", [0.1, None], root=copy)
    parameters = "".join(json.loads(path.read_text())["cells"][1]["source"])
    assert "values: list[Optional[float]] = [0.1, None]" in parameters
