"""Figures and tables: readable on light and dark pages, for all eyes, and the same each time."""

import csv
import io
import json
import re
from collections.abc import Callable
from itertools import combinations
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb

mpl.use("svg")

from riembn import pages  # noqa: E402
from riembn.pages.draw import spread  # noqa: E402
from riembn.pages.drawn import DATA, as_csv  # noqa: E402
from riembn.pages.palette import ON_DARK  # noqa: E402

LIGHT_PAGE, DARK_PAGES = "#ffffff", ("#14181e", "#121212")
# Viénot, Brettel and Mollon (1999): what is left of linear RGB for readers without one kind of cone.
PROTAN = [[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]]
DEUTAN = [[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]]
TO_XYZ = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]

Page = Callable[[Callable[[], None]], str]


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Page:
    """The HTML that a call puts on the page."""
    shown: list[dict[str, str]] = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))

    def put(call: Callable[[], None]) -> str:
        shown.clear()
        call()
        (data,) = shown
        assert data["text/plain"]
        return data["text/html"]

    return put


def curves(scale: float = 1.0, **options: Any) -> None:
    fig, ax = pages.figure()
    x = np.linspace(0, 1, 30)
    for k, method in enumerate(pages.METHODS):
        pages.line(ax, x, scale * np.exp(-x) + 0.001 * k, method)
        pages.band(ax, x, scale * np.exp(-x) - 0.1, scale * np.exp(-x) + 0.1, method)
    ax.set(xlabel="epoch", ylabel="test error, %", title="Curves")
    pages.label_ends(ax)
    pages.show(fig, **({"caption": "Do they differ?", "alt": "Four curves."} | options))


def linear(color: str) -> np.ndarray:
    rgb = np.array(to_rgb(color))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    dark, light = sorted(float(linear(color) @ [0.2126, 0.7152, 0.0722]) for color in (one, other))
    return (light + 0.05) / (dark + 0.05)


def lab(rgb: np.ndarray) -> np.ndarray:
    x, y, z = np.cbrt(np.clip(TO_XYZ @ rgb, 0, None) / [0.9505, 1.0, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("color", ON_DARK)
def test_labels_in_the_color_of_a_series_can_be_read(color: str) -> None:
    assert contrast(color, LIGHT_PAGE) >= 4.5
    assert min(contrast(ON_DARK[color], dark) for dark in DARK_PAGES) >= 4.5


@pytest.mark.parametrize("eyes", [np.eye(3), PROTAN, DEUTAN], ids=["all cones", "protan", "deutan"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_methods_are_told_apart_by_color_blind_readers(eyes: Any, theme: str) -> None:
    colors = [look.color if theme == "light" else ON_DARK[look.color] for look in pages.METHODS.values()]
    seen = [lab(np.asarray(eyes) @ linear(color)) for color in colors]
    assert min(float(np.linalg.norm(a - b)) for a, b in combinations(seen, 2)) > 12


def test_methods_have_markers_of_their_own() -> None:
    assert len({look.marker for look in pages.METHODS.values()}) == len(pages.METHODS)
    others = [pages.look(name, index) for index, name in enumerate(("adamp", "geoopt"))]
    assert all(look.width < pages.METHODS["sgd-g"].width for look in others)
    assert len({(look.color, look.marker) for look in others}) == 2


def test_same_figure_gives_the_same_page(page: Page) -> None:
    assert page(curves) == page(curves)
    assert page(curves) != page(lambda: curves(2.0))


def test_figure_takes_ink_and_tones_from_the_page(page: Page) -> None:
    html = page(curves)
    for color in (
        pages.INK,
        pages.MUTED,
        pages.GRID,
        pages.PAPER,
        *(m.color for m in pages.METHODS.values()),
    ):
        plain, on_page = (
            len(re.findall(rf"(?:fill|stroke): {color};{more}", html)) for more in ("", r" \w+: [clv]")
        )
        assert plain == on_page > 0, color
    assert "currentColor" in html and "light-dark(#0072b2, #56b4e9)" in html
    assert not re.search(r"(fill|stroke): #(000000|ffffff)", html)


def test_figure_brings_no_style_date_or_font_of_its_own(page: Page) -> None:
    drawings = re.findall(r"<svg.*?</svg>", page(curves), flags=re.DOTALL)
    assert len(drawings) == 2
    for drawing in drawings:
        assert not re.search(r"<style|<metadata|font-family|<!--", drawing)
        assert "test error, %</text>" in drawing


def test_ids_of_two_drawings_do_not_collide(page: Page) -> None:
    html = page(curves) + page(lambda: curves(2.0))
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids)) > 0
    assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', html)) <= {(i, "") for i in ids} | {
        ("", i) for i in ids
    }


def test_figure_says_what_it_shows(page: Page) -> None:
    html = page(lambda: curves(name="curves", caption='Is "a" < b?', alt='"a" < b'))
    assert html.count('role="img" aria-label="&quot;a&quot; &lt; b"') == 2
    assert 'id="fig-curves"' in html and "<figcaption>Is &quot;a&quot; &lt; b?</figcaption>" in html


@pytest.mark.parametrize("missing", ["caption", "alt"])
def test_figure_without_words_is_refused(missing: str) -> None:
    with pytest.raises(ValueError, match="needs a caption, and alt"):
        curves(**{missing: " "})


def drawings(page: Page, rows: int, columns: int, **options: Any) -> list[tuple[float, float]]:
    def call() -> None:
        fig, axes = pages.figure(rows, columns, **options)
        for ax in np.ravel(axes):
            pages.dots(ax, [0, 1], [1, 2], [0, 1], [2, 3], "sgd", runs=[[0.5, 1.5], [2.0]])
            pages.legend(ax)
        pages.show(fig, caption="c", alt="a")

    boxes = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', page(call))
    return [(float(width), float(height)) for width, height in boxes]


def test_row_of_panels_is_stacked_on_a_phone(page: Page) -> None:
    (wide, low), (narrow, high) = drawings(page, 1, 3)
    assert wide > 1.5 * narrow and high > 2 * low
    assert len(drawings(page, 1, 1)) == 2
    assert len(drawings(page, 2, 2)) == 1  # a grid scrolls instead


def test_a_list_of_many_lines_keeps_its_height_on_a_phone(page: Page) -> None:
    (_, tall), (_, on_a_phone) = drawings(page, 1, 1, height=9.0)
    assert on_a_phone == tall


@pytest.mark.parametrize(
    ("low", "high", "written"),
    [
        (2e-3, 3e4, ["0.001", "0.01", "0.1", "1", "10", "100", "1,000", "10,000"]),
        (2e-5, 50, ["10⁻⁵", "10⁻⁴", "10⁻³", "10⁻²", "10⁻¹", "10⁰", "10¹", "10²"]),
        (2, 6, ["2", "3", "4", "6"]),
        (2e-6, 6e-6, ["2×10⁻⁶", "3×10⁻⁶", "4×10⁻⁶", "6×10⁻⁶"]),
    ],
)
def test_numbers_at_a_logarithmic_axis_are_text(page: Page, low: float, high: float, written: list[str]) -> None:
    def drawn() -> None:
        fig, ax = pages.figure()
        pages.line(ax, [0, 1], [low, high], "sgd", label="")
        ax.set(xticks=[], yscale="log")
        pages.show(fig, caption="c", alt="a")

    shown = page(drawn)
    wide = shown[: shown.index("</svg>")]
    assert re.findall(r">([^<>]+)</text>", wide) == written
    assert "<tspan" not in shown


def test_names_at_the_ends_of_curves_do_not_overlap() -> None:
    fig, ax = pages.figure()
    for k, method in enumerate(pages.METHODS):
        ax.plot([0, 1], [0, 1e-3 * k], label=pages.look(method).label)
    pages.label_ends(ax)
    fig.draw_without_rendering()
    boxes = sorted((text.get_window_extent() for text in ax.texts), key=lambda box: box.y0)
    assert len(boxes) == 4
    assert all(above.y0 >= below.y1 for below, above in zip(boxes, boxes[1:], strict=False))


places = st.lists(st.floats(-100, 100), min_size=1, max_size=8).map(np.array)


@given(places, st.floats(0.5, 20))
def test_spread_keeps_order_distance_and_middle(ends: np.ndarray, gap: float) -> None:
    moved = spread(ends, gap)
    order = np.argsort(ends, kind="stable")
    assert (np.diff(moved[order]) >= gap - 1e-9).all()
    assert moved.mean() == pytest.approx(ends.mean(), abs=1e-9)


@given(places, st.floats(0.5, 20))
def test_spread_leaves_alone_what_stands_apart(ends: np.ndarray, gap: float) -> None:
    apart = ends + 200 * (1 + gap) * np.arange(len(ends))
    np.testing.assert_allclose(spread(apart, gap), apart, rtol=1e-12)


@given(places, st.floats(0.5, 20), st.integers(0, 2**32 - 1))
def test_spread_is_the_closest_such_arrangement(ends: np.ndarray, gap: float, seed: int) -> None:
    moved = spread(ends, gap)
    order = np.argsort(ends, kind="stable")
    other = moved.copy()
    steps = np.random.default_rng(seed).exponential(2.0, len(ends))
    other[order] = moved[order][0] - steps[0] + np.concatenate([[0], np.cumsum(gap + steps[1:])])
    assert np.square(moved - ends).sum() <= np.square(other - ends).sum() + 1e-6


def test_table_shows_columns_without_index_and_escapes(page: Page) -> None:
    frame = pd.DataFrame({"<method>": ["a&b", "c"], "error": [1.236, None], "runs": [3, 4]}, index=[7, 8])
    html = page(
        lambda: pages.table(frame, caption="Error, %", formats={"error": "{:.2f}", "runs": "n={}".format})
    )
    body = re.sub(r"<style.*?</style>", "", html, flags=re.DOTALL)
    assert re.findall(r"<t[hd](?: [^>]*)?>(.*?)</t[hd]>", body) == [
        *("&lt;method&gt;", "error", "runs"),
        *("a&amp;b", "1.24", "n=3"),
        *("c", "–", "n=4"),
    ]
    assert "<caption>Error, %</caption>" in body and 'tabindex="0"' in body


def test_methods_of_a_table_have_their_names(page: Page) -> None:
    frame = pd.DataFrame({"method": ["sgd-g", "adamw", "mine"], "rate": [0.2, 0.1, 0.3]})
    shown = page(lambda: pages.table(frame, caption="Rates."))
    names = [re.sub("<[^>]*>", "", cell) for cell in re.findall(r"<td>(.*?)</td>", shown)]
    assert names == ["SGD-G", "AdamW", "mine"]


@pytest.mark.parametrize("given", [{"benchmark": "step", "device": "cpu"}, [{"from": "elsewhere"}], ["step-cpu"]])
def test_what_is_no_benchmark_is_refused(given: Any) -> None:
    """A record where a list of them is asked for, one of something else, a name."""
    with pytest.raises(ValueError, match="one is no record of ci/bench; give a list"):
        pages.table(pd.DataFrame({"a": [1]}), caption="Times.", benchmarks=given)


def test_a_name_with_hyphens_stays_in_its_line(page: Page) -> None:
    frame = pd.DataFrame({"set": ["step of wrn-28-10", "SGD-G / SGD"], "p": [6e-6, 1.0]})
    shown = page(lambda: pages.table(frame, caption="Sets."))
    assert re.findall(r'<span class="word">(.*?)</span>', shown) == ["wrn-28-10", "6e-06", "SGD-G"]


def test_texts_for_the_prose_are_named_by_the_chapter(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setattr("myst_nb.glue", lambda name, text, display: told.append((name, text, display)))
    pages.say("alpha", best_rate="0.1", lost=3, gap="1e-8 on e-mail")
    assert told == [
        ("alpha-best-rate", "0.1", False),
        ("alpha-lost", "3", False),
        ("alpha-gap", "1e\u20118 on e-mail", False),
    ]


def test_heat_shows_the_page_at_zero() -> None:
    assert pages.DIVERGING(0.5)[3] == 0
    (low, high) = (pages.DIVERGING(0.0), pages.DIVERGING(1.0))
    assert low[3] == high[3] == 1 and low[:3] != high[:3]


def rows(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_numbers_of_a_figure_are_where_its_curve_is_drawn(monkeypatch: pytest.MonkeyPatch, scale: str) -> None:
    shown: list[dict[str, Any]] = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    fig, ax = pages.figure()
    pages.line(ax, [1.0, 2.0, 4.0], [10.0, 1.0, 1 / 3], "sgd-g", label="measured")
    ax.set(xlabel="epoch", ylabel="loss", yscale=scale)
    pages.show(fig, name="loss", caption="What?", alt="A curve.")
    head, *points = rows(shown[0][DATA]["csv"])
    assert head == ["series", "kind", "epoch", "loss"]
    assert points == [["measured", "curve", *map(repr, xy)] for xy in [(1.0, 10.0), (2.0, 1.0), (4.0, 1 / 3)]]

    html = shown[0]["text/html"]
    told = json.loads(re.search(r'<script type="application/json">(.*?)</script>', html)[1])
    paths = re.findall(r'd="(M[^"]*)"[^>]*stroke: #0072b2', html)
    for drawing, path in zip(told["drawings"], paths, strict=True):
        (panel,) = drawing["panels"]
        left, top, right, bottom = panel["box"]
        drawn = np.array(re.findall(r"-?[\d.]+", path), dtype=float).reshape(-1, 2)
        x, y = (drawn[:, 0] - left) / (right - left), (bottom - drawn[:, 1]) / (bottom - top)
        back = []
        for share, (low, high, kind) in ((x, panel["x"]), (y, panel["y"])):
            low, high = np.log([low, high]) if kind == "log" else (low, high)
            value = low + share * (high - low)
            back.append(np.exp(value) if kind == "log" else value)
        np.testing.assert_allclose(np.transpose(back), [[1, 10], [2, 1], [4, 1 / 3]], rtol=0.02, atol=0.02)


def test_numbers_of_estimates_carry_their_intervals_and_their_runs() -> None:
    fig, ax = pages.figure()
    pages.dots(ax, [0, 1.1], [1.0, 2.0], [0.5, 1.5], [1.5, 2.5], "sgd-g", runs=[[0.9, 1.1], [2.0]])
    ax.axhline(0)  # guides the eye
    ax.set_xticks([0, 1], ["none", "0.1"])
    ax.set(xlabel="threshold", ylabel="error, %")
    assert rows(as_csv(fig)) == [
        ["series", "kind", "threshold", "error, %", "low", "high"],
        ["SGD-G", "run", "none", "0.9", "", ""],
        ["SGD-G", "run", "none", "1.1", "", ""],
        ["SGD-G", "run", "0.1", "2.0", "", ""],
        ["SGD-G", "estimate", "none", "1.0", "0.5", "1.5"],
        ["SGD-G", "estimate", "0.1", "2.0", "1.5", "2.5"],
    ]


def test_numbers_of_bands_bars_and_matrices_are_told() -> None:
    fig, axes = pages.figure(1, 3)
    pages.band(axes[0], [1, 2], [0, 1], [2, 3], "sgd")
    axes[1].barh([0, 1], [2, 3], left=[0.5, 1], label="part")
    pages.heat(axes[2], [[0.0, 1.0]])
    assert rows(as_csv(fig)) == [
        ["panel", "series", "kind", "x", "y", "low", "high", "value"],
        ["1", "SGD", "band", "1.0", "", "0.0", "2.0", ""],
        ["1", "SGD", "band", "2.0", "", "1.0", "3.0", ""],
        ["2", "part", "bar", "2.5", "0.0", "0.5", "2.5", ""],
        ["2", "part", "bar", "4.0", "1.0", "1.0", "4.0", ""],
        ["3", "", "matrix", "0.0", "0.0", "", "", "0.0"],
        ["3", "", "matrix", "1.0", "0.0", "", "", "1.0"],
    ]
