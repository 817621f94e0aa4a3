"""The whole site in a browser: every page, light and dark, on a screen and on a phone, without a network."""

from __future__ import annotations

import csv
import functools
import http.server
import io
import os
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "ci"))

pytestmark = pytest.mark.xdist_group("site")  # one browser, one server

WIDTHS = {"screen": (1280, 900), "phone": (390, 844)}
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]


def _site() -> Path | None:
    """The site to look at: BOOK_SITE, or the one that ci/book built last."""
    site = Path(os.environ.get("BOOK_SITE") or ROOT / "_build" / "html")
    return site if (site / "index.html").is_file() else None


SITE = _site()
WHY_NOT = browser.missing() or (None if SITE else "the book is not built here: ci/book comes first")
in_a_browser = pytest.mark.skipif(WHY_NOT is not None, reason=f"not looked at: {WHY_NOT}")
PAGES = sorted(p.relative_to(SITE).as_posix() for p in SITE.glob("book/*.html")) if SITE and not WHY_NOT else []
PAGES += ["search.html?q=geodesic", "genindex.html"] if PAGES else []


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:  # a browser that leaves a page hangs up on it
        pass


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the site is served: below a folder, as on the pages of a repository."""
    above = tmp_path_factory.mktemp("served")
    assert SITE is not None
    (above / "riembn").symlink_to(SITE.resolve(), target_is_directory=True)
    server = Server(("127.0.0.1", 0), functools.partial(Quiet, directory=str(above)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/riembn"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser.browser() as started:
        yield started


class Reader:
    """A page of the browser, and what it complained of and asked for."""

    def __init__(self, chromium: Any, address: str, width: str = "screen", theme: str = "light") -> None:
        wide, high = WIDTHS[width]
        self.context = chromium.new_context(viewport={"width": wide, "height": high}, color_scheme=theme)
        self.context.set_default_timeout(120_000)
        self.address = address
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.outside: list[str] = []
        self.failed: list[str] = []
        self.page.on("console", lambda said: said.type == "error" and self.errors.append(said.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("response", lambda answer: answer.status >= 400 and self.failed.append(answer.url))
        self.context.route(lambda url: not url.startswith((address, "data:", "blob:", "file:")), self._refuse)

    def _refuse(self, route: Any) -> None:
        self.outside.append(route.request.url)
        route.abort()

    def open(self, page: str) -> Any:
        """Load a page of the site and wait until its formulas are set."""
        self.errors.clear()
        self.outside.clear()
        self.failed.clear()
        self.page.goto(f"{self.address}/{page}")
        self.page.evaluate("async () => { await window.MathJax?.startup?.promise }")
        return self.page


@pytest.fixture(scope="module")
def readers(chromium: Any, address: str) -> Iterator[dict[tuple[str, str], Reader]]:
    made = {(w, t): Reader(chromium, address, w, t) for w in WIDTHS for t in ("light", "dark")}
    yield made
    for reader in made.values():
        reader.context.close()


@pytest.fixture
def reader(readers: dict[tuple[str, str], Reader]) -> Reader:
    return readers["screen", "light"]


@in_a_browser
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", list(WIDTHS))
@pytest.mark.parametrize("name", PAGES)
def test_page_is_whole_and_accessible(
    readers: dict[tuple[str, str], Reader], name: str, width: str, theme: str
) -> None:
    here = readers[width, theme]
    page = here.open(name)
    if name.startswith("search"):
        page.wait_for_selector("#search-results li")
    assert page.evaluate("document.documentElement.dataset.theme") == theme
    seen = page.evaluate(
        """() => ({
          wider: document.documentElement.scrollWidth - document.documentElement.clientWidth,
          cut: [...document.querySelectorAll('div.cell_input pre, div[class*=highlight-] pre')]
            .filter((pre) => !pre.closest('.cell_output') && pre.scrollWidth > pre.clientWidth + 1).length,
          broken: document.querySelectorAll('mjx-merror, .MathJax_Error').length,
          unset: [...document.querySelectorAll('.math')].filter((m) => !m.querySelector('mjx-container')).length,
        })"""
    )
    assert seen == {"wider": 0, "cut": 0, "broken": 0, "unset": 0}
    assert (here.errors, here.outside, here.failed) == ([], [], [])
    page.evaluate(browser.axe_script())
    # it would fetch style sheets from places where a browser does not look for them
    found = page.evaluate("async (tags) => (await axe.run({runOnly: tags, preload: false})).violations", RULES)
    told = [f"{v['id']}: {n['html'][:160]} {n['failureSummary'][:160]}" for v in found for n in v["nodes"]]
    assert not told, "\n".join(told[:10])


@in_a_browser
@pytest.mark.parametrize(
    ("word", "page"),
    [
        ("geodesic", "02-manifold"),
        ("clipping", "09-clipping"),
        ("Grassmann", "02-manifold"),
        ("bandwidth", "14-step"),
        ("plateau", "11-plateau"),
    ],
)
def test_search_finds_what_a_page_is_about(reader: Reader, word: str, page: str) -> None:
    reader.open(f"search.html?q={word}")
    reader.page.wait_for_selector("#search-results li a")
    found = reader.page.eval_on_selector_all("#search-results li a", "all => all.map((one) => one.href)")
    assert any(page in address for address in found), found


@in_a_browser
def test_sphere_turns_by_drag_and_by_keyboard_and_back(reader: Reader) -> None:
    page = reader.open("book/02-manifold.html")
    sphere = page.locator(".riembn-globe svg.riembn-live").first
    sphere.scroll_into_view_if_needed()

    def drawn() -> str:
        return str(sphere.evaluate("svg => svg.innerHTML"))

    views = [drawn()]
    box = sphere.bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 60, middle[1] + 20)
    page.mouse.up()
    views.append(drawn())
    sphere.focus()
    page.keyboard.press("ArrowLeft")
    views.append(drawn())
    assert len(set(views)) == 3
    sphere.dblclick()
    assert drawn() == views[0]


@in_a_browser
def test_slider_walks_along_the_sphere(reader: Reader) -> None:
    page = reader.open("book/02-manifold.html")
    globe = page.locator("#fig-sphere .riembn-globe")
    before = globe.locator("svg.riembn-live").evaluate("svg => svg.innerHTML")
    slider = globe.get_by_role("slider", name="Walk")
    slider.focus()
    page.keyboard.press("End")
    assert globe.locator("output").inner_text() == "1.25 radians"
    assert globe.locator("svg.riembn-live").evaluate("svg => svg.innerHTML") != before


@in_a_browser
def test_numbers_of_a_figure_are_those_of_its_file(reader: Reader) -> None:
    page = reader.open("book/intro.html")
    link = page.locator("#fig-glance .riembn-data a").first
    text = page.evaluate("async (url) => (await fetch(url)).text()", link.evaluate("a => a.href"))
    rows = list(csv.DictReader(io.StringIO(text)))
    axis = "test error minus that of SGD, points"
    estimates = {row["series"]: row for row in rows if row["kind"] == "estimate"}
    assert set(estimates) == {"SGD-G", "Adam-G", "PSI-SGD"}
    plot = page.locator("#fig-glance .riembn-plot")
    plot.focus()
    told = []
    for _ in range(3):
        page.keyboard.press("ArrowDown" if told else "ArrowRight")
        told.append(page.locator("#fig-glance .riembn-tip").inner_text().splitlines())
    for name, x, _ in told:
        row = estimates[name]
        number = re.match(rf"{axis} (\S+) \((\S+) to (\S+)\)", x)
        assert number, x
        shown = [float(value) for value in number.groups()]
        assert shown == pytest.approx([float(row[key]) for key in (axis, "low", "high")], rel=1e-4)
    assert len({name for name, *_ in told}) == 3


@in_a_browser
def test_number_under_the_pointer_is_shown(reader: Reader) -> None:
    page = reader.open("book/intro.html")
    plot = page.locator("#fig-glance .riembn-plot")
    plot.scroll_into_view_if_needed()
    plot.focus()
    page.keyboard.press("ArrowRight")
    by_key = page.locator("#fig-glance .riembn-tip").inner_text()
    mark = page.locator("#fig-glance .riembn-mark").bounding_box()
    page.keyboard.press("Escape")
    assert page.locator("#fig-glance .riembn-tip").is_hidden()
    page.mouse.move(mark["x"] + mark["width"] / 2, mark["y"] + mark["height"] / 2)
    assert page.locator("#fig-glance .riembn-tip").inner_text() == by_key
    page.mouse.move(5, 5)
    assert page.locator("#fig-glance .riembn-tip").is_hidden()


@in_a_browser
def test_code_folds_and_unfolds_one_by_one_and_all_at_once(reader: Reader) -> None:
    page = reader.open("book/02-manifold.html")
    cells = page.locator(".cell details.hide")
    assert cells.count() > 3 and not cells.first.evaluate("cell => cell.open")
    cells.first.locator("summary").click()
    assert cells.first.locator("pre").is_visible()
    cells.first.locator("summary").click()
    button = page.get_by_role("button", name="show all code")
    button.click()
    assert cells.evaluate_all("all => all.every((cell) => cell.open)")
    page.get_by_role("button", name="hide code of figures").click()
    assert cells.evaluate_all("all => all.every((cell) => !cell.open)")


@in_a_browser
def test_link_shows_what_it_leads_to_without_a_request(reader: Reader) -> None:
    page = reader.open("book/09-clipping.html")
    link = page.locator("a.internal[href*='glossary.html#term-']").first
    link.scroll_into_view_if_needed()
    link.hover()
    shown = page.locator(".riembn-preview")
    shown.wait_for()
    assert link.inner_text().split()[0].lower()[:6] in shown.inner_text().lower()
    page.mouse.move(5, 5)
    shown.wait_for(state="detached")
    assert reader.outside == []


@in_a_browser
def test_link_to_what_is_folded_unfolds_it(reader: Reader) -> None:
    page = reader.open("book/09-clipping.html")
    page.locator(".riembn-data a[href$='#origin']").first.click()
    page.get_by_text("All records of the book in one file").wait_for(state="visible")


@in_a_browser
def test_book_reads_from_files_without_a_server(chromium: Any) -> None:
    assert SITE is not None
    here = Reader(chromium, SITE.resolve().as_uri())
    try:
        page = here.open("book/02-manifold.html")
        assert page.locator("mjx-container").count() > 10
        assert page.locator(".riembn-globe svg.riembn-live").count() == 2
        assert (here.errors, here.outside) == ([], [])
        page = here.open("search.html?q=geodesic")
        page.wait_for_selector("#search-results li a")
        assert here.outside == []  # what surrounds a hit cannot be read from files, and the browser says so
    finally:
        here.context.close()


@in_a_browser
def test_page_without_scripts_still_has_its_figures(chromium: Any, address: str) -> None:
    context = chromium.new_context(java_script_enabled=False)
    try:
        page = context.new_page()
        page.goto(f"{address}/book/02-manifold.html")
        assert page.locator(".riembn-globe svg").first.is_visible()
        assert page.locator("#fig-distance svg.riembn-screen").is_visible()
    finally:
        context.close()


@in_a_browser
def test_address_that_does_not_exist_leads_back(chromium: Any, address: str) -> None:
    """Pages shows 404.html at whatever address was asked for."""
    assert SITE is not None
    text = (SITE / "404.html").read_text(encoding="utf-8")
    assert "<h1" in text and re.search(r'href="[^"]*book/intro\.html"', text)


@in_a_browser
def test_printed_page_has_its_text_and_figures_and_no_navigation(reader: Reader) -> None:
    page = reader.open("book/09-clipping.html")
    page.emulate_media(media="print")
    try:
        assert page.locator("h1:visible").count() == 1 and page.locator("figure svg:visible").count()
        for part in (".bd-sidebar-primary", ".bd-sidebar-secondary", ".about-page", ".prev-next-area"):
            assert not page.locator(part).first.is_visible(), part
        assert page.pdf()[:5] == b"%PDF-"
    finally:
        page.emulate_media(media="screen")


@in_a_browser
def test_every_control_is_reached_by_the_keyboard(reader: Reader) -> None:
    page = reader.open("book/02-manifold.html")
    reached = set()
    for _ in range(120):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement?.className?.baseVal ?? document.activeElement?.className"))
    said = " ".join(map(str, reached))
    for part in ("riembn-live", "all-code", "theme-switch-button", "search"):
        assert part in said, part


def test_site_is_small_enough() -> None:
    if SITE is None:
        pytest.skip("not weighed: the book is not built here")
    sizes = {file: file.stat().st_size for file in SITE.rglob("*") if file.is_file()}
    assert sum(sizes.values()) <= 22e6
    assert sizes[SITE / "book" / "intro.html"] <= 500e3
