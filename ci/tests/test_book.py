"""The line from chapters to the website, on a book of two small chapters."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "ci"))

from website import contents, digest, execute  # noqa: E402
from website.__main__ import main  # noqa: E402
from website.check import check  # noqa: E402

pytestmark = pytest.mark.xdist_group("book")  # the built book is shared, so one process runs them all

PARAMETERS = """profile: str = "laptop"  # how large the runs are
steps: list[float] = [0.5, 1.0]  # lengths of the step, radians"""
CODE = [
    "import numpy as np\nfrom riembn import pages\nfrom riembn.pages import chapter\n\nchapter.check(globals())",
    """angle = np.linspace(0, max(steps), 20)
fig, ax = pages.figure()
pages.line(ax, angle, np.cos(angle), "sgd-g")
pages.show(fig, name="cosine", caption="How far does a step lead?", alt="A cosine falling from one.")""",
]


def chapter(title: str, *code: str) -> nbformat.NotebookNode:
    v4 = nbformat.v4
    cells = [
        v4.new_markdown_cell(f"# {title}\n\nA chapter that is only there to be built."),
        v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        *map(v4.new_code_cell, code),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def new_book(root: Path) -> Path:
    (root / "book" / "records").mkdir(parents=True)
    (root / "riembn").symlink_to(ROOT / "riembn", target_is_directory=True)
    for name in ("_config.yml", "requirements.txt"):
        shutil.copy(ROOT / name, root)
    shutil.copy(ROOT / "book" / "references.bib", root / "book")
    shutil.copytree(ROOT / "book" / "_static", root / "book" / "_static")
    names = ("01-step", "02-turn")
    for name in names:
        nbformat.write(chapter(f"Chapter {name}", *CODE), root / "book" / f"{name}.ipynb")
    (root / "book" / "intro.md").write_text(
        "# Front\n\n[](/book/01-step)\n\n<!-- figure: 01-step cosine -->\n"
    )
    (root / "book" / "provenance.md").write_text(
        "# Times\n\n<!-- chapters -->\n\n<!-- runs -->\n\n<!-- versions -->\n"
    )
    listed = "".join(f"      - file: book/{name}\n" for name in (*names, "provenance"))
    (root / "_toc.yml").write_text(
        f"format: jb-book\nroot: book/intro\nparts:\n  - caption: Chapters\n    chapters:\n{listed}"
    )
    return root


@pytest.fixture
def book(tmp_path: Path) -> Path:
    return new_book(tmp_path)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = new_book(tmp_path_factory.mktemp("book"))
    assert main([], root) == 0
    return root


def page(root: Path, name: str) -> str:
    return (root / "_build" / "html" / "book" / f"{name}.html").read_text(encoding="utf-8")


def chapters(root: Path) -> list[contents.Page]:
    return [page for page in contents.pages(root) if page.is_chapter]


def test_chapter_is_meant_by_name_number_or_path(book: Path) -> None:
    for typed in ("02-turn", "02", "02-turn.ipynb", "book/02-turn.ipynb"):
        assert [page.name for page in contents.select([typed], chapters(book))] == ["02-turn"]


def test_unknown_chapter_is_refused_with_the_list(book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["99-nothing"], book) == 1
    assert capsys.readouterr().err == "ci/book: Unknown chapter '99-nothing'; there are 01-step, 02-turn.\n"
    assert not (book / "_build").exists()


def test_entry_without_a_file_is_refused(book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (book / "book" / "02-turn.ipynb").unlink()
    assert main([], book) == 1
    assert "_toc.yml lists book/02-turn, but there is no book/02-turn.ipynb" in capsys.readouterr().err


def test_digest_sees_what_a_chapter_depends_on(book: Path) -> None:
    first, second = chapters(book)
    before = digest.code_digest(book, first, "laptop"), digest.records_digest(book, "laptop")
    second.source.write_text(second.source.read_text().replace("only there", "there only"))
    assert before == (digest.code_digest(book, first, "laptop"), digest.records_digest(book, "laptop"))

    (book / "book" / "records" / "run.json").write_text("{}")
    assert digest.records_digest(book, "laptop") != before[1]
    assert digest.records_digest(book, "smoke") == ""

    measured = book / "book" / "benchmarks" / "step-cpu.json"
    measured.parent.mkdir()
    measured.write_text("{}")
    assert before[0] == digest.code_digest(book, first, "laptop")
    first.source.write_text(
        first.source.read_text().replace("import numpy", "# chapter.benchmarks()\\nimport numpy")
    )
    drawn = digest.code_digest(book, first, "laptop")
    measured.write_text("{ }")
    assert digest.code_digest(book, first, "laptop") != drawn

    seen = {before[0], digest.code_digest(book, first, "paper")}
    first.source.write_text(first.source.read_text().replace("only there", "there only"))
    seen.add(digest.code_digest(book, first, "laptop"))
    (book / "riembn").unlink()
    (book / "riembn").mkdir()
    seen.add(digest.code_digest(book, first, "laptop"))
    with (book / "requirements.txt").open("a") as requirements:
        requirements.write("another\n")
    seen.add(digest.code_digest(book, first, "laptop"))
    assert len(seen) == 5


def test_every_entry_has_a_page_and_every_chapter_ran(built: Path) -> None:
    check(built, contents.pages(built))
    for name in ("intro", "01-step", "02-turn", "provenance"):
        assert "<h1" in page(built, name)
    for name in ("01-step", "02-turn"):
        staged = nbformat.read(built / "_build" / "book" / f"{name}.ipynb", as_version=4)
        assert staged.metadata["papermill"]["parameters"] == {"profile": "laptop"}
        assert staged.metadata["papermill"]["exception"] is None


def test_figure_is_on_its_page_and_where_it_is_asked_for(built: Path) -> None:
    for name in ("01-step", "intro"):
        assert page(built, name).count('id="fig-cosine"') == 1
        assert "How far does a step lead?" in page(built, name)


def test_nothing_runs_again_when_nothing_changed(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [execute.executed(built, chapter, "laptop") for chapter in chapters(built)]
    before = [file.read_bytes() for file in files]
    assert main([], built) == 0
    assert "Running" not in capsys.readouterr().out
    assert [file.read_bytes() for file in files] == before


def test_printed_command_reruns_the_chapter(built: Path) -> None:
    text = nbformat.read(built / "_build" / "book" / "01-step.ipynb", as_version=4).cells[-1].source
    (printed,) = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    words = shlex.split(printed.replace("\\\n", " "))
    assert words == [
        *("papermill", "book/01-step.ipynb", "out.ipynb"),
        *("-p", "profile", "laptop", "-p", "steps", "[0.5, 1.0]"),
    ]
    rerun = [sys.executable, "-m", *words, "--no-progress-bar"]
    done = subprocess.run(rerun, cwd=built, env=execute.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| `steps` | `list[float]` | `[0.5, 1.0]` | lengths of the step, radians |" in text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["-p", "step", "3"], "unknown parameter 'step': this chapter accepts profile, steps."),
        (["-p", "steps", "fast"], "parameter 'steps' = 'fast': expected a list with at least one entry"),
    ],
)
def test_papermill_alone_is_refused_what_the_chapter_does_not_have(
    built: Path, given: list[str], said: str
) -> None:
    words = ["papermill", "book/01-step.ipynb", "refused.ipynb", *given, "--no-progress-bar"]
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=built, env=execute.environment(), capture_output=True, text=True
    )
    assert done.returncode != 0
    assert f"ValueError: {said}" in done.stderr


def test_failing_chapter_stops_the_build_and_leaves_the_site(
    built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = page(built, "01-step")
    source = built / "book" / "02-turn.ipynb"
    good = source.read_text(encoding="utf-8")
    nbformat.write(chapter("Chapter 02-turn", CODE[0], "steps[0] / 0.0"), source)
    try:
        assert main([], built) == 1
        said = capsys.readouterr().err
        assert said.startswith(
            "ci/book: 02-turn: code cell 3 failed: ZeroDivisionError: float division by zero\n"
        )
        assert page(built, "01-step") == before
        (chapter_again,) = contents.select(["02"], chapters(built))
        assert not execute.is_current(built, chapter_again, "laptop")
    finally:
        source.write_text(good, encoding="utf-8")


def test_chapter_that_shows_nothing_or_never_ran_is_refused(tmp_path: Path) -> None:
    root = new_book(tmp_path)
    for name in ("01-step", "02-turn"):
        target = root / "_build" / "book" / f"{name}.ipynb"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "book" / f"{name}.ipynb", target)
    with pytest.raises(contents.BookError) as error:
        check(root, contents.pages(root))
    assert "book/01-step: code cell 1 was not executed to its end (None)" in str(error.value)
    assert "book/01-step: no cell of it shows anything" in str(error.value)
    assert "book/intro: there is no page for it" in str(error.value)


def test_outside_resources_and_dead_links_are_refused(tmp_path: Path) -> None:
    root = new_book(tmp_path)
    site = root / "_build" / "html"
    site.mkdir(parents=True)
    (site / "x.html").write_text(
        '<h1 id="top">x</h1><script src="https://cdn.example/a.js"></script><link rel="canonical" href="https://x/">'
        '<a href="#top">a</a><a href="y.html">b</a><a href="#gone">c</a><a href="https://elsewhere/">d</a>'
    )
    with pytest.raises(contents.BookError) as error:
        check(root, [])
    lines = str(error.value).splitlines()[1:]
    assert [line.strip() for line in lines] == [
        "x.html: loads https://cdn.example/a.js from outside",
        "x.html: links to y.html, which does not exist",
        "x.html: links to #gone, an anchor that does not exist",
    ]
