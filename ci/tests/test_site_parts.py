"""What is generated around the chapters: the map, previews, ways to the functions, launch buttons, the feed."""

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

import nbformat
import pytest
from sphinx.ext.napoleon import GoogleDocstring

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "ci"))

from website import ebook, front, lean, news, opening, previews, reference, stage  # noqa: E402
from website.contents import Page, pages  # noqa: E402
from website.docstrings import _to_rest, plain_to_rest  # noqa: E402

v4 = nbformat.v4


def chapter(folder: Path, text: str, *code: str) -> Page:
    file = folder / "09-thing.ipynb"
    cells = [v4.new_markdown_cell(text), *map(v4.new_code_cell, code)]
    nbformat.write(v4.new_notebook(cells=cells), file)
    return Page("book/09-thing", file)


def read(page: Page) -> nbformat.NotebookNode:
    return nbformat.read(page.source, as_version=4)


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("# A\n\nIs it so? We look.", "Is it so?"),
        ("# A\n\nWe look. What is\na {term}`line <path>` to a {term}`row`?\n\nMore?", "What is a line to a row?"),
        ("# A\n\nNothing is asked. Here.", "Nothing is asked."),
        ("# A", ""),
    ],
)
def test_card_of_a_chapter_asks_its_question(tmp_path: Path, text: str, asked: str) -> None:
    assert front.question(chapter(tmp_path, text)) == asked


def test_map_has_each_chapter_of_the_book_once() -> None:
    shown = front.chapter_map(ROOT)
    names = [page.name for page in pages(ROOT) if page.is_chapter and page.name != "intro"]
    assert re.findall(r":link: (\S+)", shown) == names
    assert all(front.question(page) for page in pages(ROOT) if page.is_chapter)


def test_preview_is_what_a_link_leads_to_and_holds_no_link_or_anchor(tmp_path: Path) -> None:
    site = tmp_path / "site"
    (site / "book").mkdir(parents=True)
    (site / "book" / "a.html").write_text(
        '<a class="reference internal" href="b.html#term-row">row</a> <a class="reference internal" href="#eq">(1)</a>'
        '<a class="reference internal" href="b.html#unknown">x</a>'
        '<div class="math notranslate" id="eq"><span>(1)</span>\\[a < \\div b\\]</div>'
    )
    (site / "book" / "b.html").write_text(
        '<svg><dt id="term-row">no</dt></svg><dl><dt id="term-row">row<a class="headerlink" href="#term-row">#</a></dt>'
        '<dd><p>One <a href="c.html">channel</a>.</p><div><div>in</div></div></dd>'
        '<dt id="term-next">next</dt><dd>no</dd></dl>'
    )
    script = previews.previews(site)
    told = json.loads(script.removeprefix("window.riembnPreviews = ").rstrip(";\n"))
    assert told == {
        "book/a.html#eq": '<div class="math notranslate"><span>(1)</span>\\[a < \\div b\\]</div>',
        "book/b.html#term-row": "<dt>row</dt><dd><p>One channel.</p><div><div>in</div></div></dd>",
    }


@pytest.mark.parametrize(
    ("path", "left_out"),
    [
        ("mathjax/tex-chtml.js", False),
        ("mathjax/input/tex/extensions/cancel.js", False),
        ("mathjax/output/chtml/fonts/woff-v2/MathJax_Zero.woff", False),
        ("mathjax/input/tex/extensions/all-packages.js", True),
        ("mathjax/ui/menu.js", True),
        ("vendor/fontawesome/webfonts/fa-solid-900.woff2", False),
        ("vendor/fontawesome/webfonts/fa-solid-900.ttf", True),
        ("scripts/bootstrap.js.map", True),
        ("data/08-decay/locales.csv", False),
    ],
)
def test_site_leaves_out_what_no_page_asks_for(path: str, left_out: bool) -> None:
    *folders, file = path.split("/")
    above = ["/site/_static", *folders]
    dropped = (name in lean.unneeded("/".join(above[: 1 + i]), [name]) for i, name in enumerate([*folders, file]))
    assert any(dropped) == left_out


def test_only_icons_that_a_page_shows_are_kept(tmp_path: Path) -> None:
    scripts = tmp_path / "_static" / "scripts"
    scripts.mkdir(parents=True)
    icons = (
        '0:[320,512,[],"30","M0"]',
        '"circle-half-stroke":[512,512,[9680,"adjust"],"f042","M1"]',
        'bars:[448,512,["navicon"],"f0c9","M2"]',
        'sun:[512,512,[],"f185",["M3","M4"]]',
    )
    (scripts / "fontawesome.js").write_text(f"var a={{{','.join(icons)}}};")
    (tmp_path / "index.html").write_text('<i class="fa-solid fa-adjust"></i><i class="fas fa-bars"></i>')
    lean.keep_used_icons(tmp_path)
    kept = (scripts / "fontawesome.js").read_text()
    assert "M1" in kept and "M2" in kept
    assert "M0" not in kept and "M3" not in kept


def test_chapter_leads_to_the_functions_that_it_uses(tmp_path: Path) -> None:
    page = chapter(
        tmp_path,
        "# A",
        "import numpy as np\nimport riembn\nfrom riembn.geometry import sphere\nfrom riembn import pages",
        "sphere.exp_map(y, h)\nriembn.split(net)\nnp.load(x)\nload(x)\nriembn.split(net)\npages.show",
    )
    names = ("split", "geometry.sphere.exp_map", "data.load", "pages.show", "preset")
    known = {f"riembn.{name}": "api" for name in names}
    found = reference.calls(read(page), known)
    assert sorted(found) == ["riembn.geometry.sphere.exp_map", "riembn.pages.show", "riembn.split"]
    assert reference.links(["riembn.split"], known) == '<a href="api.html#riembn.split"><code>riembn.split</code></a>'


def test_every_described_name_exists_and_public_names_are_described() -> None:
    import riembn

    known = reference.homes(pages(ROOT))
    for name in known:
        thing = riembn
        for part in name.split(".")[1:]:
            thing = getattr(thing, part, None) or __import__(f"{thing.__name__}.{part}", fromlist=[part])
        assert thing.__doc__, name
    public = {f"riembn.{name}" for name, thing in vars(riembn).items() if callable(thing) and name[0] != "_"}
    tables = {"riembn.methods", "riembn.networks", "riembn.datasets"}
    assert public - known.keys() - tables == set()


def test_names_in_docstrings_become_code_and_bars_and_stars_stay() -> None:
    assert plain_to_rest("`a` and ``b`` of :math:`|c|`, |w|") == "``a`` and ``b`` of :math:`|c|`, \\|w\\|"
    assert plain_to_rest('*tuned*, "layer.*", "*.conv"') == '*tuned*, "layer.\\*", "\\*.conv"'


def test_words_before_a_colon_are_no_type() -> None:
    """Of what a function returns, and of an attribute, napoleon would make "A frame" the type."""

    def rendered(what: str, *lines: str) -> str:
        text = list(lines)
        _to_rest(None, what, "thing", None, None, text)
        return " ".join(str(GoogleDocstring(text, what=what)).split())

    returns = rendered("function", "Does.", "", "Returns:", "    A frame: a row a run.")
    assert returns == "Does. :returns: A frame: a row a run."
    assert rendered("property", "Safe as a name: network, seed.") == "Safe as a name: network, seed."


def test_labels_of_the_map_are_not_counted_as_text_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = chapter(tmp_path, "# Title\n\n" + "word " * 400)
    notebook = read(page)
    notebook.cells.append(v4.new_markdown_cell(front.MAP))
    monkeypatch.setattr(stage, "chapter_map", lambda root: "card " * 400)
    monkeypatch.setattr(stage, "ending", lambda *given: "")
    stage._around(tmp_path, page, notebook, {})
    assert "2 min to read" in notebook.cells[0].source and "card card" in notebook.cells[1].source


def test_line_under_the_title_offers_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = chapter(tmp_path, "# Title\n\n" + "word " * 1000, "chapter.records(profile)")
    (tmp_path / "book").mkdir()
    monkeypatch.delenv("BOOK_REPOSITORY", raising=False)
    notebook = read(page)
    opening.opened(tmp_path, page, notebook)
    line = notebook.cells[0].source.splitlines()[2]
    assert notebook.cells[0].source.startswith("# Title\n\n") and "5 min to read" in line
    assert "Colab" not in line and "fork" not in line and "to run" not in line

    (tmp_path / "book" / "times.json").write_text('{"chapters": {"09-thing": {"chapter": 12.3}}}')
    (tmp_path / "book" / "18-fork.ipynb").write_text("{}")
    monkeypatch.setenv("BOOK_REPOSITORY", "https://github.com/some/book.git")
    notebook = read(page)
    opening.opened(tmp_path, page, notebook)
    line = notebook.cells[0].source.splitlines()[2]
    assert "to run" not in line and 'href="18-fork.html"' in line
    assert " min to read · 12 s to run · " in opening.timed(tmp_path, page.name, line)
    assert " min to read · <a" in opening.timed(tmp_path, "10-other", line)
    assert "https://colab.research.google.com/github/some/book/blob/notebooks/09-thing.ipynb" in line
    assert "https://mybinder.org/v2/gh/some/book/notebooks?labpath=09-thing.ipynb" in line


def test_first_cell_of_a_notebook_opened_elsewhere_brings_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its commands, with the clone in place of the published one and without fetching again what is installed here."""
    origin = tmp_path / "origin" / "book"
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", f"file://{ROOT}", str(origin)], check=True)
    monkeypatch.setenv("BOOK_REPOSITORY", f"file://{origin}")
    cell = nbformat.reads(opening.portable(chapter(tmp_path, "# A", "1")).decode(), as_version=4).cells[0]
    clone, folder, install = cell.source.splitlines()[1:]
    away = tmp_path / "away"
    away.mkdir()
    subprocess.run(clone.removeprefix("!"), shell=True, cwd=away, check=True)
    checkout = away / folder.removeprefix("%cd ")
    assert (checkout / "book" / "records").is_dir()
    pip = f"{sys.executable} -m {install.removeprefix('%')}"
    quiet = {**os.environ, "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_TARGET": str(tmp_path / "installed")}
    subprocess.run(pip, shell=True, cwd=checkout, env=quiet, check=True, capture_output=True)
    ask = "import riembn, sys; print(riembn.__file__)"
    alone = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    said = subprocess.run([sys.executable, "-c", ask], cwd=away, env=alone, check=True, capture_output=True, text=True)
    assert said.stdout.strip().startswith(str(tmp_path / "installed"))


def test_feed_has_an_entry_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOOK_URL", "https://some.github.io/book/")
    (tmp_path / "book").mkdir()
    assert news.feed(tmp_path) is None
    (tmp_path / "book" / "changelog.md").write_text("# New\n\n## 2026-02-03\n\n- a < b\n\n## 2026-01-02\n\n- c\n")
    feed = ElementTree.fromstring(news.feed(tmp_path).encode())
    atom = "{http://www.w3.org/2005/Atom}"
    assert feed.find(f"{atom}updated").text == "2026-02-03T00:00:00Z"
    assert [one.find(f"{atom}content").text for one in feed.iter(f"{atom}entry")] == ["- a < b", "- c"]
    assert feed.find(f"{atom}entry/{atom}id").text == "https://some.github.io/book/book/changelog.html#2026-02-03"


def test_renamed_page_leads_on(tmp_path: Path) -> None:
    (tmp_path / "book").mkdir()
    assert news.moved(tmp_path) == {}
    (tmp_path / "book" / "moved.txt").write_text("# why\n\nold-name 09-thing\n")
    assert news.moved(tmp_path) == {"old-name": "09-thing"}
    assert 'url=09-thing.html"' in news.signpost("09-thing")
    assert all((ROOT / "book" / f"{new}.ipynb").is_file() for new in news.moved(ROOT).values())


@pytest.mark.parametrize("name", ["test", "publish"])
def test_workflow_runs_commands_that_exist(name: str) -> None:
    import yaml

    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text(encoding="utf-8"))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    commands = "\n".join(step["run"] for step in steps if "run" in step)
    for script in re.findall(r"(?:bash )?(\.?ci/\w+)", commands):
        assert os.access(ROOT / script, os.X_OK), script
    (options,) = [re.findall(r"--[\w-]+", line) for line in commands.splitlines() if "ci/book" in line] or [[]]
    from website.__main__ import _arguments

    _arguments(options)
    assert all("uses" in step or "run" in step for step in steps)
    assert all(re.fullmatch(r"[\w./-]+@v\d+", step["uses"]) for step in steps if "uses" in step)


def test_description_for_the_archive_agrees_with_the_citation() -> None:
    import yaml

    told = json.loads((ROOT / ".zenodo.json").read_text(encoding="utf-8"))
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert told["title"] == cited["title"] and told["license"] == cited["license"]
    assert told["keywords"] == cited["keywords"]
    assert [one["name"] for one in told["creators"]] == [one["name"] for one in cited["authors"]]


def test_an_ebook_has_its_formulas_as_mathml_and_no_link_to_a_file_of_the_site(tmp_path):
    macros = {"R": r"\mathbb{R}", "norm": [r"\lVert #1\rVert", 1], "inner": [r"\langle #1, #2\rangle", 2]}
    shown = '<p><span class="math notranslate">\\(\\norm{w} &lt; \\inner{a_{1}} b \\in \\R\\)</span></p>'
    shown += '<div class="math notranslate" id="eq"><span class="eqno">(1)</span>\\[\\begin{split}'
    shown += "\\begin{aligned} a &amp;= b \\\\ c &amp;= d \\end{aligned}\\end{split}\\]</div>"
    shown += '<p class="expanded admonition-title">Hide the code</p><a class="b" href="other.xhtml#at">other</a>'
    shown += '<a href="../_static/d.csv">Numbers</a> · <a href="gone.xhtml">gone</a> · <a href="https://a.b/c">out</a>'
    page = f'<html xmlns="http://www.w3.org/1999/xhtml"><body>{shown}</body></html>'
    file = tmp_path / "book.epub"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as book:
        book.writestr(zipfile.ZipInfo("mimetype"), "application/epub+zip")
        book.writestr("book/one.xhtml", page)
        book.writestr("book/other.xhtml", "<html/>")
        items = "".join(f'<item id="{name}" href="book/{name}.xhtml" />' for name in ("one", "other"))
        book.writestr("content.opf", f"<package>{items}</package>")
    ebook.readable(file, macros)
    with zipfile.ZipFile(file) as book:
        first, made = book.infolist()[0], book.read("book/one.xhtml").decode()
        manifest = book.read("content.opf").decode()
    assert (first.filename, first.compress_type) == ("mimetype", zipfile.ZIP_STORED)
    ElementTree.fromstring(made)
    assert made.count("<math ") == 2 and made.count("<mtd") == 5 and "\\" not in made
    assert '<span class="eqno">(1)</span><math' in made and "Hide the code" not in made
    assert made.endswith('<a class="b" href="other.xhtml#at">other</a>gone · <a href="https://a.b/c">out</a></body></html>')
    assert re.findall(r'properties="mathml" id="(\w+)"', manifest) == ["one"]
    assert ebook.expand(r"\norm{\inner{a}{\}}}\Rest", macros) == r"\lVert \langle a, \}\rangle\rVert\Rest"
