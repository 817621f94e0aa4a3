"""The line from chapters to the website, on a book of two small chapters."""

import csv
import io
import json
import os
import posixpath
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree import ElementTree

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "ci"))

from website import contents, digest, endings, execute, processes, render, stage  # noqa: E402
from website.__main__ import main  # noqa: E402
from website.archive import schema  # noqa: E402
from website.check import check  # noqa: E402
from website.numbers import linked  # noqa: E402

from riembn.pages.drawn import DATA, behind  # noqa: E402

pytestmark = pytest.mark.xdist_group("book")  # the built book is shared, so one process runs them all

PARAMETERS = """profile: str = "laptop"  # how large the runs are
steps: list[float] = [0.5, 1.0]  # lengths of the step, radians"""
CODE = [
    "import numpy as np\nfrom riembn import pages\nfrom riembn.pages import chapter\n\nchapter.check(globals())",
    """angle = np.linspace(0, max(steps), 20)
fig, ax = pages.figure()
pages.line(ax, angle, np.cos(angle), "sgd-g")
pages.show(fig, name="cosine", caption="How far does a step lead?", alt="A cosine falling from one.")""",
    """import pandas as pd

shown = pd.DataFrame({"step": steps, "cosine": np.cos(steps)})
pages.table(shown, caption="Steps and their cosines", formats={"cosine": "{:.2f}"})
print("said once")
print("said twice")""",
]
MEASURED = """measured = chapter.benchmarks("step", "cpu")
pages.table(pd.DataFrame({"on": list(measured)}), caption="Devices", benchmarks=measured.values())"""


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
    shutil.copytree(ROOT / "riembn", root / "riembn", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("_config.yml", "requirements.txt", "CITATION.cff"):
        shutil.copy(ROOT / name, root)
    shutil.copy(ROOT / "book" / "references.bib", root / "book")
    shutil.copytree(ROOT / "book" / "_static", root / "book" / "_static")
    (root / "book" / "benchmarks").mkdir()
    shutil.copy(ROOT / "book" / "benchmarks" / "step-cpu.json", root / "book" / "benchmarks")
    names = ("01-step", "02-turn")
    for name, more in zip(names, ([], [MEASURED]), strict=True):
        nbformat.write(chapter(f"Chapter {name}", *CODE, *more), root / "book" / f"{name}.ipynb")
    (root / "book" / "intro.md").write_text(
        "# Front\n\n[](/book/01-step)\n\n<!-- figure: 01-step cosine -->\n"
    )
    (root / "book" / "provenance.md").write_text(
        "# Times\n\n<!-- chapters -->\n\n<!-- runs -->\n\n<!-- measurements -->\n\n<!-- versions -->\n"
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

    def code(profile: str = "laptop") -> str:
        return digest.code_digest(book, first, profile)

    before = code()
    second.source.write_text(second.source.read_text().replace("only there", "there only"))
    assert code() == before

    measured = book / "book" / "benchmarks" / "step-cpu.json"
    measured.write_text("{}")
    assert code() == before
    first.source.write_text(
        first.source.read_text().replace("import numpy", "# chapter.benchmarks()\\nimport numpy")
    )
    drawn = code()
    measured.write_text("{ }")
    assert code() != drawn

    seen = {before, code("paper")}
    first.source.write_text(first.source.read_text().replace("only there", "there only"))
    seen.add(code())
    shutil.rmtree(book / "riembn")
    (book / "riembn" / "kernels").mkdir(parents=True)
    seen.add(code())
    for name in ("rows.c", "rows.h"):
        (book / "riembn" / "kernels" / name).write_text("/* */")
        seen.add(code())
    with (book / "requirements.txt").open("a") as requirements:
        requirements.write("another\n")
    seen.add(code())
    assert len(seen) == 7


def test_digest_of_records_is_that_of_the_runs_a_chapter_named(book: Path) -> None:
    (page, _) = chapters(book)
    folder = book / "book" / "records"

    def records(*used: str) -> str:
        return digest.records_digest(book, page, "laptop", used)

    (folder / "net-s0-aa.json").write_text("{}")
    before = records("aa")
    (folder / "net-s1-bb.json").write_text("{}")
    assert records("aa") == before != records("aa", "bb")
    (folder / "net-s0-aa.json").write_text("{ }")
    assert records("aa") != before
    (folder / "net-s0-aa.json").unlink()
    assert records("aa") == records() != before  # a record that is gone makes a chapter run again

    good = page.source.read_text()
    for number, reads in enumerate(("store.frame()", "if study.missing(store): 1", "pages.outcome(study, store)")):
        page.source.write_text(good.replace("import numpy", f"{reads}\\nimport numpy"))
        before = records()
        (folder / f"net-s{number + 2}-cc.json").write_text("{}")
        assert records() != before


def test_a_change_of_text_keeps_the_smoke_runs_and_a_change_of_the_package_does_not(
    book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = book / "_build" / "records" / "smoke" / "net-s0-aa.json"
    execute._forget_other_packages_runs(book)
    record.write_text("{}")
    page, _ = chapters(book)
    page.source.write_text(page.source.read_text().replace("only there", "there only"))
    execute._forget_other_packages_runs(book)
    assert record.is_file()
    with (book / "requirements.txt").open("a") as requirements:
        requirements.write("another\n")
    execute._forget_other_packages_runs(book)
    assert not record.is_file()


def test_run_without_its_record_is_an_error_and_not_left_out(built: Path) -> None:
    page, _ = chapters(built)
    notebook = nbformat.read(execute.executed(built, page, "laptop"), as_version=4)
    with pytest.raises(contents.BookError, match="drawn from 3 records, of which 2 are not there any more"):
        stage.ending(built, page, notebook, dict.fromkeys(("00aa", "00bb", "step-cpu"), ["fig-drift"]))


def test_what_another_package_made_is_stale_whatever_it_says(built: Path, tmp_path: Path) -> None:
    root = tmp_path / "book"
    shutil.copytree(built, root, ignore=shutil.ignore_patterns("html", ".doctrees"))
    page, _ = chapters(root)
    file = execute.executed(root, page, "laptop")
    assert execute.is_current(root, page, "laptop")
    notebook = nbformat.read(file, as_version=4)
    notebook.metadata["riembn"]["digest"]["code"] = "of before"
    for cell in notebook.cells:
        for out in cell.get("outputs", []):
            out.get("data", {}).get(DATA, {}).pop("runs", None)
    nbformat.write(notebook, file)
    assert not execute.is_current(root, page, "laptop")


def test_each_figure_and_table_leads_to_its_own_runs(built: Path) -> None:
    """A table that no run of ours is in, say a published one, must not seem to be drawn from the others' runs."""

    def output(kind: str, name: str | None, *runs: str) -> nbformat.NotebookNode:
        html = f'<div class="riembn-{kind}">' if kind == "table" else f'<figure id="fig-{name}"></figure>'
        return nbformat.v4.new_output("display_data", data={"text/html": html, DATA: behind(name, "x\n", runs)})

    page, _ = chapters(built)
    notebook = nbformat.read(execute.executed(built, page, "laptop"), as_version=4)
    shown = [output("table", None), output("figure", "ends", "aa", "bb"), output("table", "best", "aa")]
    notebook.cells.append(nbformat.v4.new_code_cell("shown", outputs=shown))
    assert endings.used(notebook) == {"aa", "bb"}
    numbers = linked(built, page, notebook)
    assert numbers.shown == {"aa": ["fig-ends", "data-best"], "bb": ["fig-ends"]}
    told = [re.sub(r"<a [^>]*>|</a>", "", out.data["text/html"]).partition("(CSV)")[2] for out in shown]
    assert [text.partition("<")[0] for text in told] == ["", " · 2 recorded runs", " · 1 recorded run"]
    assert shown[2].data["text/html"].startswith('<span id="data-best">')
    runs = [endings.Run(name, name, 0, "c", "cpu", 1.0, {}, "finished") for name in ("aa", "bb")]
    lines = "\n".join(endings._runs(runs, numbers.shown))
    assert '<a href="#fig-ends">ends</a>, <a href="#data-best">best</a> | c' in lines
    alike = endings._runs(runs, dict.fromkeys(numbers.shown, ["fig-ends"]))
    assert alike[0] == 'Each is shown in <a href="#fig-ends">ends</a>.' and "shown in |" not in "".join(alike)


def test_benchmark_is_a_file_of_the_site_and_named_where_it_is_shown_and_at_the_end(built: Path) -> None:
    name = "benchmarks/step-cpu.json"
    record = json.loads((ROOT / "book" / name).read_text())
    assert json.loads((built / "_build" / "html" / "_static" / name).read_text()) == record
    where = record["environment"]
    link = rf'<a [^>]*href="../_static/{name}" download="">'
    line, _, end = page(built, "02-turn").partition('id="origin"')
    assert re.findall(rf"\(CSV\)</a> · {link}(.*?)</a></p>", line) == [
        f"Record of the measurement (step-cpu, {where['cpu']})"
    ]
    assert f"measured on {where['cpu']}" in line and name not in page(built, "01-step")
    for told in (end, page(built, "provenance")):
        (row,) = re.findall(rf"<tr[^>]*>(?:(?!</tr>).)*{link}step-cpu</a>.*?</tr>", told, flags=re.DOTALL)
        assert where["cpu"] in row and where["commit"][:7] in row and f"torch {where['torch']}" in row
    assert 'href="#data-table-2">table-2</a>' in end


def test_benchmark_without_its_record_is_an_error(built: Path) -> None:
    page, _ = chapters(built)
    told = behind("gone", "x\n", (), [{"benchmark": "step", "device": "gone"}])
    shown = nbformat.v4.new_output("display_data", data={"text/html": '<figure id="fig-gone"></figure>', DATA: told})
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("shown", outputs=[shown])])
    with pytest.raises(contents.BookError, match="01-step: gone is drawn from step-gone, which book/benchmarks has no"):
        linked(built, page, notebook)


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


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_nothing_runs_or_is_rendered_again_when_nothing_changed(
    built: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(built / "_build" / "html")
    monkeypatch.setattr("website.render._sphinx", lambda *_: pytest.fail("rendered again"))
    assert main([], built) == 0
    assert "Running" not in capsys.readouterr().out
    assert snapshot(built / "_build" / "html") == before


def test_chapter_run_again_is_the_same_to_the_last_byte(built: Path) -> None:
    files = [execute.executed(built, chapter, "laptop") for chapter in chapters(built)]
    before = [file.read_bytes() for file in files]
    assert main(["01", "02"], built) == 0
    assert [file.read_bytes() for file in files] == before


def test_site_of_one_changed_chapter_is_that_of_a_whole_build(built: Path) -> None:
    source = built / "book" / "02-turn.ipynb"
    good = source.read_text(encoding="utf-8")
    try:
        source.write_text(good.replace("to be built.", "to be built. It was changed."), encoding="utf-8")
        assert main([], built) == 0
        partly = snapshot(built / "_build" / "html")
        assert b"It was changed." in partly["book/02-turn.html"]
        for name in ("site", "html"):
            shutil.rmtree(built / "_build" / name)
        assert main([], built) == 0
        whole = snapshot(built / "_build" / "html")
        assert partly.keys() == whole.keys()
        assert [name for name in whole if whole[name] != partly[name]] == []
    finally:
        source.write_text(good, encoding="utf-8")
        assert main([], built) == 0


@pytest.fixture(scope="module")
def elsewhere(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same book, built in a folder of another name."""
    root = tmp_path_factory.mktemp("elsewhere") / "other"
    shutil.copytree(built, root, ignore=shutil.ignore_patterns("_build", "__pycache__"))
    assert main([], root) == 0
    return root


def test_two_builds_in_two_folders_are_the_same_to_the_last_byte(built: Path, elsewhere: Path) -> None:
    one, other = (snapshot(root / "_build" / "html") for root in (built, elsewhere))
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []


def test_page_that_is_not_found_below_a_folder_has_its_styles_and_links(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is shown at any address, so each of its own has to start at the root of the server."""
    monkeypatch.setenv("BOOK_URL", "https://some.github.io/riembn/")
    assert main([], elsewhere) == 0
    site = elsewhere / "_build" / "html"
    shown = (site / "404.html").read_text(encoding="utf-8")
    addresses = map(urlsplit, re.findall(r'(?:href|src)="([^"#]+)"', shown))
    paths = [address.path for address in addresses if address.netloc != "some.github.io" and address.path]
    assert "/riembn/book/intro.html" in paths and len(paths) > 20
    assert [path for path in paths if not path.startswith("/riembn/")] == []
    assert [path for path in paths if not (site / path.removeprefix("/riembn/")).is_file()] == []


def test_one_epub_of_all_pages(built: Path) -> None:
    with zipfile.ZipFile(render.epub(built)) as book:
        names = book.namelist()
        assert "mimetype" in names and any(name.endswith("02-turn.xhtml") for name in names)
        for name in names:
            if name.endswith(".xhtml"):
                text = book.read(name).decode()
                ElementTree.fromstring(text)  # a reader of ePubs shows nothing behind an error
                assert "\\(" not in text and "\\[" not in text, name
                for address in re.findall(r'<a [^>]*href="([^"#:]+)', text):
                    assert posixpath.normpath(posixpath.join(posixpath.dirname(name), address)) in names, address


def test_numbers_of_figures_and_tables_are_files_of_the_site(built: Path) -> None:
    static = built / "_build" / "html" / "_static"
    rows = list(csv.reader(io.StringIO((static / "data/01-step/cosine.csv").read_text())))
    assert rows[0] == ["series", "kind", "x", "y"] and len(rows) == 21
    assert rows[1] == ["SGD-G", "curve", "0.0", "1.0"]
    table = list(csv.reader(io.StringIO((static / "data/01-step/table-1.csv").read_text())))
    assert table[0] == ["step", "cosine"] and table[2] == ["1.0", "0.5403023058681398"]
    for name in ("cosine", "table-1"):
        assert f'href="../_static/data/01-step/{name}.csv"' in page(built, "01-step")
    assert '"csv"' not in page(built, "01-step")


def test_code_that_only_shows_is_folded(built: Path) -> None:
    cells = nbformat.read(built / "_build" / "book" / "01-step.ipynb", as_version=4).cells
    folded = [cell.metadata.tags for cell in cells if cell.cell_type == "code"]
    assert folded == [["parameters"], ["injected-parameters", "remove-cell"], [], ["hide-input"], ["hide-input"]]


def test_page_says_how_long_it_is_and_offers_its_notebook(built: Path) -> None:
    line = '<p class="about-page">1 min to read · <a href="../_sources/book/01-step.ipynb"'
    assert line in page(built, "01-step")
    kept = nbformat.read(built / "_build" / "html" / "_sources" / "book" / "01-step.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in kept.cells)  # the page has them
    assert kept.cells[0].source.startswith("# Chapter 01-step\n\nA chapter")


def test_records_are_one_file_with_their_schema_and_how_to_cite_them() -> None:
    files, measured = (sorted((ROOT / "book" / name).glob("*.json")) for name in ("records", "benchmarks"))
    from website.archive import archive, citation

    packed = archive(files, measured, "about", citation(ROOT, "abc"))
    assert packed == archive(files[::-1], measured[::-1], "about", citation(ROOT, "abc"))
    with zipfile.ZipFile(io.BytesIO(packed)) as archived:
        names = set(archived.namelist())
        form = json.loads(archived.read("riembn-records/schema.json"))
        kept = {file: archived.read(f"riembn-records/benchmarks/{file.name}") for file in measured}
    assert len(kept) >= 4 and all(content == file.read_bytes() for file, content in kept.items())
    assert {f"riembn-records/records/{file.name}" for file in files} < names
    assert {f"riembn-records/{name}" for name in ("README.md", "schema.json", "CITATION.txt")} < names
    for file in files:
        record = json.loads(file.read_text())
        assert set(form["required"]) <= record.keys()
        assert record["columns"].keys() <= form["properties"]["columns"]["properties"].keys()
    assert form == schema()


def other_build(root: Path, *arguments: str) -> subprocess.Popen[str]:
    start = "import sys; from pathlib import Path; from website.__main__ import command"
    code = f"{start}; sys.exit(command(Path('.').resolve()))"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'ci'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_second_build_in_a_clone_is_refused(book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with processes.alone(book):
        second = other_build(book)
        _, said = second.communicate(timeout=120)
    assert second.returncode == 1
    assert said == (
        f"ci/book: another ci/book (process {os.getpid()}) builds in this clone: wait until it has ended, or end it.\n"
    )


def test_build_that_is_ended_ends_all_it_started_and_keeps_what_was_done(book: Path) -> None:
    orphan = "import subprocess\nsubprocess.Popen(['sleep', '3600'], start_new_session=True)\n"
    sleeps = orphan + "open('started', 'w').close()\nimport time\ntime.sleep(3600)"
    nbformat.write(chapter("Chapter 02-turn", CODE[0], sleeps), book / "book" / "02-turn.ipynb")
    build = other_build(book)
    first, second = chapters(book)
    deadline = time.monotonic() + 300
    while not ((book / "started").exists() and execute.is_current(book, first, "laptop")):
        assert time.monotonic() < deadline and build.poll() is None, build.communicate()
        time.sleep(0.2)
    build.send_signal(signal.SIGTERM)
    # the pipes close when nobody is left to hold them
    build.communicate(timeout=60)
    assert build.returncode == 128 + signal.SIGTERM
    assert not [process for process in processes.psutil.process_iter() if processes._is_marked(process, book)]
    assert execute.is_current(book, first, "laptop") and not execute.is_current(book, second, "laptop")


def test_printed_command_reruns_the_chapter(built: Path) -> None:
    text = nbformat.read(built / "_build" / "book" / "01-step.ipynb", as_version=4).cells[-1].source
    (printed,) = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    words = shlex.split(printed.replace("\\\n", " "))
    assert words == [
        *("papermill", "book/01-step.ipynb", "out.ipynb"),
        *("-p", "profile", "laptop", "-p", "steps", "[0.5, 1.0]"),
    ]
    rerun = [sys.executable, "-m", *words, "--no-progress-bar"]
    done = subprocess.run(rerun, cwd=built, env=execute.environment(built), capture_output=True, text=True)
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
        [sys.executable, "-m", *words], cwd=built, env=execute.environment(built), capture_output=True, text=True
    )
    assert done.returncode != 0
    assert f"ParameterError: {said}" in done.stderr and "pages/chapter.py" not in done.stderr


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
