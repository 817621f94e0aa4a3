"""Put figures and tables onto a page, so that they follow its theme and its width, with their numbers.

A figure is drawn as SVG twice, for a screen and for a phone. Its ink is the text color of the page, and each
series has a tone for light and one for dark pages, so it looks the same in the book and in Jupyter.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from html import escape
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec

from riembn.pages.draw import legend, spread_labels
from riembn.pages.drawn import DATA, as_csv, behind, csv_text, hover, scene
from riembn.pages.palette import IN_CSS, STYLE, look
from riembn.pages.ticks import plain_numbers

_PHONE = 3.7  # inches: the text column of a phone

_FIGURE_CSS = """<style>
.riembn-figure { margin: 1.25rem 0 }
.riembn-plot { overflow-x: auto }
.riembn-plot svg { display: block; width: 100%; height: auto }
.riembn-plot .riembn-phone { display: none }
.riembn-wide-only svg { min-width: 34rem }
@media (max-width: 600px) {
  .riembn-plot .riembn-phone { display: block }
  .riembn-plot:not(.riembn-wide-only) .riembn-screen { display: none }
}
</style>"""
_TABLE_CSS = """<style>
.riembn-table { overflow-x: auto; margin: 1.25rem 0 }
.riembn-table caption { caption-side: top; text-align: left }
.riembn-table .number { text-align: right; font-variant-numeric: tabular-nums }
.riembn-table .word { white-space: nowrap }
</style>"""

_HYPHENATED = re.compile(r"(?<![\w-])\w[\w.]*(?:-[\w.]+)+(?![\w-])")  # a name such as wrn-28-10 stays in its line


def show(
    fig: Figure,
    *,
    caption: str,
    alt: str,
    name: str | None = None,
    phone: bool = True,
    runs: Iterable[str] = (),
    benchmarks: Iterable[Mapping[str, Any]] = (),
) -> None:
    """Put a figure on the page, with a caption for all readers and a text for those who do not see it.

    Args:
        fig: A figure made by ``figure``; it is closed.
        caption: Best a question, then what to see. Plain text.
        alt: What the figure shows, in a sentence or two, for a screen reader.
        name: The anchor of the figure: ``name="drift"`` is reached by ``#fig-drift``.
        phone: Draw it a second time for phones, panels of a row stacked. False: let phones scroll.
        runs: Digests of the recorded runs that it is drawn from: ``frame["digest"]``.
        benchmarks: Records of ``ci/bench`` that it is drawn from, as `riembn.pages.chapter.benchmarks` gives them.

    Raises:
        ValueError: If ``caption`` or ``alt`` is empty, a run has no digest, or a benchmark is none.
    """
    check_texts(caption, alt)
    plain_numbers(fig)
    drawings = _svg(fig, alt, "riembn-screen")
    numbers, points, scenes = as_csv(fig), hover(fig), [scene(fig)]
    if phone := phone and _fit_phone(fig):
        drawings += _svg(fig, alt, "riembn-phone")
        scenes.append(scene(fig))
    plt.close(fig)
    kind = "" if phone else " riembn-wide-only"
    told = behind(name, numbers, runs, benchmarks)
    put(kind, drawings, {**points, "drawings": scenes}, told, caption=caption, alt=alt)


def check_texts(caption: str, alt: str) -> None:
    """Raise ValueError unless a figure has both."""
    if not caption.strip() or not alt.strip():
        raise ValueError("show: a figure needs a caption, and alt for readers who do not see it; pass both.")


def put(
    kind: str, drawings: str, scene: Any, told: dict[str, Any], *, caption: str, alt: str, css: str = ""
) -> None:
    """Put drawings on the page with what a script of it has to know of them, and what the page's builder has to."""
    from IPython.display import display

    anchor = f' id="fig-{escape(told["name"])}"' if told["name"] else ""
    data = json.dumps(scene, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    page = (
        f'<figure class="riembn-figure"{anchor}>{_FIGURE_CSS}{css}<div class="riembn-plot{kind}">{drawings}'
        f'<script type="application/json">{data}</script></div><figcaption>{escape(caption)}</figcaption></figure>'
    )
    display({"text/html": page, "text/plain": f"{caption} {alt}", DATA: told}, raw=True)


def table(
    frame: pd.DataFrame,
    *,
    caption: str,
    formats: dict[str, str | Callable[[Any], str]] | None = None,
    name: str | None = None,
    runs: Iterable[str] = (),
    benchmarks: Iterable[Mapping[str, Any]] = (),
) -> None:
    """Put a data frame on the page; a wide one scrolls on its own, and the index is left out.

    Args:
        frame: The columns to show, in their order; their names are the headers. In a column ``method`` the keys of
            methods become their names.
        caption: What the numbers are, with their unit.
        formats: For a column a format such as ``"{:.2f}"``, or a function from the value to its text.
        name: Of the file with its numbers; otherwise the page counts its tables.
        runs: Digests of the recorded runs that it is drawn from: ``frame["digest"]``.
        benchmarks: Records of ``ci/bench`` that it is drawn from, as `riembn.pages.chapter.benchmarks` gives them.

    Raises:
        ValueError: If a run has no digest, or a benchmark is none.
    """
    from IPython.display import display

    formats = formats or {}
    if "method" in frame:
        frame = frame.assign(method=[look(method).label for method in frame["method"]])
    number = {name: frame[name].dtype.kind in "iuf" or name in formats for name in frame.columns}

    def cell(tag: str, name: Any, text: str) -> str:
        kind = ' class="number"' if number[name] else ""
        inside = escape(typeset(text))
        if tag == "td":  # a header may break, or it would widen its column
            inside = _HYPHENATED.sub(r'<span class="word">\g<0></span>', inside)
        return f"<{tag}{kind}>{inside}</{tag.split()[0]}>"

    def text(name: Any, value: Any) -> str:
        how = formats.get(name, "{}")
        if value is None or value != value:
            return "–"
        return how(value) if callable(how) else how.format(value)

    head = "".join(cell('th scope="col"', name, str(name)) for name in frame.columns)
    columns = [[cell("td", name, text(name, value)) for value in frame[name]] for name in frame.columns]
    rows = "".join(f"<tr>{''.join(row)}</tr>" for row in zip(*columns, strict=True))
    page = (
        f'<div class="riembn-table" role="region" tabindex="0" aria-label="{escape(caption)}">{_TABLE_CSS}'
        f'<table class="dataframe"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
    numbers = csv_text([str(name) for name in frame.columns], frame.itertuples(index=False))
    told = behind(name, numbers, runs, benchmarks)
    display({"text/html": page, "text/plain": frame.to_string(index=False), DATA: told}, raw=True)


def say(chapter: str, **texts: object) -> None:
    """Hand texts to the prose of a chapter: ``say("plateau", best_rate=0.1)`` glues 0.1 by the name plateau-best-rate.

    Args:
        chapter: What the names begin with, the noun of the chapter first.
        texts: By the rest of their names, with ``_`` for a hyphen.
    """
    from myst_nb import glue

    for name, text in texts.items():
        whole = re.sub(r"(?<=\de)-(?=\d)", "\u2011", str(text))  # no line break within 1e-8
        glue(f"{chapter}-{name.replace('_', '-')}", whole, display=False)


def typeset(text: str) -> str:
    """Text with true minus signs, and with intervals in brackets that no line breaks."""
    text = re.sub(r"(?<![\w.)])-(?=\d|\.\d|inf)", "−", text)
    return re.sub(r"\([^()]* to [^()]*\)", lambda found: found[0].replace(" ", "\u00a0"), text)


def _svg(fig: Figure, alt: str, kind: str) -> str:
    """The figure as one inline ``<svg>``: the same for the same figure, its colors taken from the page."""
    drawing = io.StringIO()
    canvas, dpi, layout = FigureCanvasSVG(fig), fig.dpi, fig.get_layout_engine()
    with mpl.rc_context(STYLE):
        if layout is not None:
            fig.set_dpi(72)  # at which an SVG measures its text
            layout.execute(fig)  # says where the ends of the curves are
        for ax in fig.axes:
            spread_labels(ax)
        fig.set_layout_engine("none")  # it is laid out: savefig would do it again, and draw it three times
        fig.set_dpi(dpi)
        canvas.print_svg(drawing, metadata={"Date": None})
    fig.set_dpi(dpi)
    fig.set_layout_engine(layout)
    text = drawing.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)  # the page's own font
    text = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", text)  # numbers of artists, which nothing refers to
    text = re.sub(r"\s*>\s+<", "><", re.sub(r" ?\n", " ", text))
    for color, in_css in IN_CSS.items():
        # both, because a browser that does not know light-dark() keeps the first
        text = re.sub(rf"(fill|stroke): {color}", rf"\1: {color}; \1: {in_css}", text)
    mark = hashlib.sha256((kind + text).encode()).hexdigest()[:8]  # ids of two figures must not collide
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>f{mark}-", text)
    box = re.search(r'viewBox="[^"]*"', text)
    opening = (
        f'<svg class="{kind}" role="img" aria-label="{escape(alt)}" {box[0] if box else ""} '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'style="max-width: {96 * fig.get_figwidth():.0f}px; stroke-linejoin: round">'
    )
    return opening + text[text.index(">") + 1 :].strip()


def _fit_phone(fig: Figure) -> bool:
    """Make the figure as wide as a phone, panels of a row stacked; False for one that cannot be."""
    grids = {spec.get_gridspec() for ax in fig.axes if (spec := ax.get_subplotspec())}
    if len(grids) != 1:
        return False
    (grid,) = grids
    panels = len(fig.axes)
    if panels != grid.nrows * grid.ncols or min(grid.nrows, grid.ncols) > 1:
        return False
    height = fig.get_figheight()
    if grid.ncols > 1:
        stack = GridSpec(panels, 1, figure=fig)
        named = [ax for ax in fig.axes if ax.get_xlabel()]
        if len(named) == 1:  # one name under the whole row stands under the whole stack
            label = named[0].get_xlabel()
            named[0].set_xlabel("")
            fig.axes[-1].set_xlabel(label)
        for place, ax in enumerate(fig.axes):
            ax.set_subplotspec(stack[place])
            ax.tick_params(labelleft=True)
        height *= panels
    for ax in fig.axes:
        ax.set_xlabel(textwrap.fill(ax.get_xlabel(), 36))
        ax.set_title(textwrap.fill(ax.get_title(loc="left"), 38), loc="left")
        if (names := ax.get_legend()) is not None and names.get_label() == "names":
            legend(ax, columns=2)
    tall = panels == 1 and height > 4.5  # a list of many lines, which keeps its height
    fig.set_size_inches(_PHONE, height if tall else min(height, 3.2 * panels))
    return True
