"""Read back from a figure the numbers that are drawn in it: for its CSV file, and for a page that shows them.

They are taken from the axes, not from what a chapter calls its data, so they are the ones that a reader sees.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter

from riembn.pages.draw import told
from riembn.pages.palette import IN_CSS

DATA = "application/vnd.riembn.data+json"
"""The kind of output by which a figure or table hands its name, numbers and records to the builder of the page."""

_HOVER_POINTS = 3000  # of one figure; a denser curve is thinned for the page, never in its CSV file


def behind(
    name: str | None, numbers: str, runs: Iterable[str] = (), benchmarks: Iterable[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """What the builder of the page is told of a figure or table.

    Its name, its numbers as CSV, the digests of its runs, and the names of its benchmarks, such as ``step-cpu``.

    Raises:
        ValueError: If a run has no digest, or a benchmark is none.
    """
    digests, measured = set(runs), list(benchmarks)
    if not all(isinstance(digest, str) for digest in digests):
        raise ValueError("runs: one has no digest; give those of recorded runs, as `Study.frame` has them.")
    if not all(isinstance(one, Mapping) and {"benchmark", "device"} <= one.keys() for one in measured):
        raise ValueError("benchmarks: one is no record of ci/bench; give a list of those of `chapter.benchmarks`.")
    names = {f"{one['benchmark']}-{one['device']}" for one in measured}
    return {"name": name, "csv": numbers, "runs": sorted(digests), "benchmarks": sorted(names)}


def series(fig: Figure) -> list[dict[str, Any]]:
    """What is drawn, in order: panel (an index), name, kind, color, and equally long lists of numbers.

    ``kind`` is ``curve``, ``points``, ``estimate`` (with ``low`` and ``high``), ``run``, ``band`` (``low`` and
    ``high`` alone), ``bar`` or ``matrix``. Lines that only guide the eye, across the whole panel, are left out.
    """
    return [{"panel": panel, **one} for panel, ax in enumerate(fig.axes) for one in _of_axes(ax)]


def as_csv(fig: Figure) -> str:
    """The numbers of a figure, a row a point, in full precision.

    The columns of the two axes carry their labels where all panels have the same, and are ``x`` and ``y`` else.
    """
    names = [ax.get_title(loc="left") or ax.get_title() or str(1 + i) for i, ax in enumerate(fig.axes)]
    found = series(fig)
    head = [_shared((fig.axes[one["panel"]].get_xlabel() for one in found), "x")]
    head += [_shared((fig.axes[one["panel"]].get_ylabel() for one in found), "y")]
    bounds = [bound for bound in ("low", "high") if any(bound in one for one in found)]
    rows = []
    for one in found:
        ax = fig.axes[one["panel"]]
        columns = [_words(ax.xaxis, one.get("x")), _words(ax.yaxis, one.get("y"))]
        columns += [one.get(bound) for bound in bounds]
        length = max(len(column) for column in columns if column is not None)
        for place in range(length):
            values = ["" if column is None else column[place] for column in columns]
            value = one["value"][place] if "value" in one else None
            rows.append([names[one["panel"]], one["name"], one["kind"], *values, value])
    lone = len(fig.axes) == 1
    plain = all(row[-1] is None for row in rows)
    keep = slice(int(lone), -1 if plain else None)
    return csv_text(["panel", "series", "kind", *head, *bounds, "value"][keep], [row[keep] for row in rows])


def csv_text(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Lines of a CSV file; numbers as Python writes them, which reads them back to the last bit."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return file.getvalue()


def scene(fig: Figure) -> dict[str, Any]:
    """What ``_static/curves.js`` has to know of one drawing to say which point is under the pointer."""
    width, height = fig.get_size_inches() * 72
    panels = []
    for ax in fig.axes:
        box = ax.get_position()
        panels.append(
            {
                "box": _short([box.x0 * width, (1 - box.y1) * height, box.x1 * width, (1 - box.y0) * height]),
                "x": [*_short(ax.get_xlim()), ax.get_xscale()],
                "y": [*_short(ax.get_ylim()), ax.get_yscale()],
            }
        )
    return {"panels": panels}


def hover(fig: Figure) -> dict[str, Any]:
    """The points of a figure as a page shows them, with names and units."""
    shown = [one for one in series(fig) if one["kind"] in ("curve", "points", "estimate", "bar")]
    thin = max(1, math.ceil(sum(len(one["x"]) for one in shown) / _HOVER_POINTS))
    kept = []
    for one in shown:
        point: dict[str, Any] = {}
        point |= {name: one[name] for name in ("panel", "name", "kind", "horizontal") if name in one}
        point["color"] = IN_CSS.get(one["color"], one["color"])
        point |= {name: _short(one[name][::thin]) for name in ("x", "y", "low", "high") if name in one}
        ax = fig.axes[one["panel"]]
        for name, axis in (("x", ax.xaxis), ("y", ax.yaxis)):
            words = _words(axis, one[name][::thin])
            if words and isinstance(words[0], str):
                point[f"{name} words"] = words
        kept.append(point)
    axes = [[ax.get_xlabel(), ax.get_ylabel()] for ax in fig.axes]
    return {"axes": axes, "series": kept}


def _of_axes(ax: Axes) -> Iterable[dict[str, Any]]:
    bars = {id(patch) for container in ax.containers for patch in container.get_children()}
    for artist in ax.get_children():
        said = told.get(artist, {})
        if said.get("kind") == "part" or id(artist) in bars or not artist.get_visible():
            continue
        if isinstance(artist, Line2D) and artist.get_transform() == ax.transData:
            x, y = (_numbers(values) for values in artist.get_data(orig=False))
            kind = "points" if str(artist.get_linestyle()).strip() in ("None", "none", "") else "curve"
            if len(x):
                name, color = _name(artist), to_hex(artist.get_color())
                yield {"name": name, "kind": kind, "color": color, "x": x, "y": y, **said}
        elif isinstance(artist, FillBetweenPolyCollection) and said:
            yield {"color": to_hex(np.atleast_2d(artist.get_facecolor())[0][:3]), **said}
        elif isinstance(artist, AxesImage):
            values: np.ndarray = np.ma.filled(np.ma.asarray(artist.get_array()), np.nan)
            i, j = np.indices(values.shape[:2])
            cells = {"x": _numbers(j.ravel()), "y": _numbers(i.ravel()), "value": _numbers(values.ravel())}
            yield {"name": "", "kind": "matrix", "color": "#000000", **cells}
    for container in ax.containers:
        yield from _bars(container)


def _bars(container: Any) -> Iterable[dict[str, Any]]:
    patches = container.get_children()
    flat = getattr(container, "orientation", "vertical") == "horizontal"
    middle = [p.get_y() + p.get_height() / 2 if flat else p.get_x() + p.get_width() / 2 for p in patches]
    ends = [p.get_x() + p.get_width() if flat else p.get_y() + p.get_height() for p in patches]
    starts = [p.get_x() if flat else p.get_y() for p in patches]
    bar: dict[str, Any] = {
        "name": _name(container),
        "kind": "bar",
        "color": to_hex(patches[0].get_facecolor()[:3]),
        "x": _numbers(ends if flat else middle),
        "y": _numbers(middle if flat else ends),
    }
    if any(starts):  # stacked: from where to where
        bar |= {"low": _numbers(starts), "high": _numbers(ends)}
    yield bar | ({"horizontal": True} if flat else {})


def _name(drawn: Any) -> str:
    """Its label; matplotlib's own begin with an underscore, and are none."""
    name = str(drawn.get_label())
    return "" if name.startswith("_") else name


def _numbers(values: Any) -> list[float]:
    return [float(value) for value in np.ma.filled(np.ma.asarray(values, dtype=float), np.nan)]


def _short(values: Iterable[float]) -> list[float | None]:
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values]


def _words(axis: Any, values: Sequence[float] | None) -> Sequence[Any] | None:
    """Names instead of places, where an axis is divided into named places and all values stand at one of them."""
    locator, formatter = axis.get_major_locator(), axis.get_major_formatter()
    named = isinstance(locator, FixedLocator) and isinstance(formatter, FixedFormatter | FuncFormatter)
    if not values or not named:
        return values
    places = np.asarray(locator.locs, dtype=float)
    if len(places) < 1 or (len(places) > 1 and np.diff(np.sort(places)).min() < 1):
        return values
    away = np.abs(np.asarray(values)[:, None] - places[None])
    if not (away.min(axis=1) < 0.45).all():
        return values
    return [formatter(places[place], place) for place in away.argmin(axis=1)]


def _shared(labels: Iterable[str], otherwise: str) -> str:
    found = set(labels)
    return found.pop().replace("\n", " ") or otherwise if len(found) == 1 else otherwise
