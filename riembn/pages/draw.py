"""Draw curves, intervals and matrices in the style of the book."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import ScaledTranslation

from riembn.pages.palette import DIVERGING, PAPER, STYLE, look

_WIDTH = 6.8  # inches: the text column of a page

told: WeakKeyDictionary[Artist, dict[str, Any]] = WeakKeyDictionary()
"""What an artist does not say of itself about the numbers that it draws, for `riembn.pages.drawn`."""


def figure(
    nrows: int = 1, ncols: int = 1, *, height: float | None = None, **options: Any
) -> tuple[Figure, Any]:
    """A figure as wide as the text, in the book's style, which from then on is matplotlib's default.

    Args:
        nrows: Rows of panels.
        ncols: Panels in a row.
        height: In inches; otherwise a pleasant one for the number of panels.
        options: As ``matplotlib.pyplot.subplots``.

    Returns:
        The figure and its axes, as ``matplotlib.pyplot.subplots``.
    """
    mpl.rcParams.update(STYLE)  # for good: titles and labels set later read them too
    height = height or nrows * {1: 3.7, 2: 3.1}.get(ncols, 2.6)
    return plt.subplots(nrows, ncols, figsize=(_WIDTH, height), **options)


def line(
    ax: Axes, x: Any, y: Any, method: str, *, index: int = 0, label: str | None = None, **options: Any
) -> None:
    """A curve in the color of ``method``, with about eight markers however many points it has."""
    style = look(method, index)
    drawn: dict[str, Any] = {
        "color": style.color,
        "marker": style.marker,
        "linewidth": style.width,
        "markevery": max(1, len(x) // 8),
        "markeredgecolor": PAPER,
        "markersize": 6,
        "label": style.label if label is None else label,
    }
    ax.plot(x, y, **(drawn | options))


def band(ax: Axes, x: Any, lo: Any, hi: Any, method: str, *, index: int = 0) -> None:
    """The interval around a curve; say in the caption which interval it is, and from how many runs."""
    style = look(method, index)
    area = ax.fill_between(x, lo, hi, color=style.color, alpha=0.2, linewidth=0)
    ends = {name: [float(v) for v in values] for name, values in (("x", x), ("low", lo), ("high", hi))}
    told[area] = {"name": style.label, "kind": "band", **ends}


def dots(
    ax: Axes,
    x: Any,
    values: Any,
    lo: Any,
    hi: Any,
    method: str,
    *,
    runs: Sequence[Sequence[float]] | None = None,
    horizontal: bool = False,
    index: int = 0,
    label: str | None = None,
) -> None:
    """Estimates as dots with their intervals, and each run behind them as a small open circle.

    Args:
        ax: Where to draw.
        x: Position of each estimate; shift methods a little apart so that none covers another.
        values: The estimates.
        lo: Lower ends of the intervals, in the units of ``values`` (not distances).
        hi: Upper ends.
        method: Whose color, marker and label to use.
        runs: For each position the single results behind the estimate.
        horizontal: Positions on the y axis, estimates on the x axis.
        index: As in ``look``.
        label: Another name than the method's.
    """
    style = look(method, index)
    name = style.label if label is None else label

    def draw(kind: str, positions: Any, results: Any, *marker: str, **options: Any) -> None:
        (drawn,) = ax.plot(*((results, positions) if horizontal else (positions, results)), *marker, **options)
        told[drawn] = {"kind": kind, "name": name}
        if kind == "estimate":
            told[drawn] |= {"low": [float(low) for low in lo], "high": [float(high) for high in hi]}
            told[drawn] |= {"horizontal": True} if horizontal else {}

    for position, low, high in zip(x, lo, hi, strict=True):
        draw("part", [position] * 2, [low, high], color=style.color, linewidth=2.2, zorder=2)
    for position, results in zip(x, runs or [[]] * len(x), strict=True):
        small = {"markersize": 4.5, "markerfacecolor": PAPER, "markeredgewidth": 1.2, "zorder": 2.5}
        draw("run", [position] * len(results), results, "o", color=style.color, **small)
    halo = {"markeredgecolor": PAPER, "markersize": 8, "zorder": 3}
    draw("estimate", x, values, style.marker, color=style.color, label=name, **halo)
    if horizontal:
        ax.margins(y=0.08)
    else:
        ax.margins(x=0.08)


def heat(ax: Axes, matrix: Any, *, limit: float = 1.0) -> Any:
    """A matrix of signed numbers: blue below zero, the page at zero, orange above, full at ``limit``."""
    ax.grid(False)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return ax.imshow(matrix, cmap=DIVERGING, vmin=-limit, vmax=limit, interpolation="nearest")


def legend(ax: Axes, *, columns: int | None = None, **options: Any) -> None:
    """The names of what is drawn, above the axes and their title; for curves prefer ``label_ends``.

    Args:
        ax: Where to write.
        columns: Names side by side; otherwise as many as fit the width of a panel.
        options: As ``matplotlib.axes.Axes.legend``, to place it otherwise; a phone keeps to its own way.
    """
    titled = any(ax.get_title(loc=where) for where in ("left", "center", "right"))
    figure = ax.get_figure(root=True)
    assert figure is not None
    above = ScaledTranslation(0, (24 if titled else 3) / 72, figure.dpi_scale_trans)
    spec = ax.get_subplotspec()
    place: dict[str, Any] = {
        "loc": "lower left",
        "ncols": columns or max(1, 4 // (spec.get_gridspec().ncols if spec else 1)),
    }
    if "bbox_to_anchor" not in options:
        place |= {"bbox_to_anchor": (0, 1), "bbox_transform": ax.transAxes + above}
    tight = {"handletextpad": 0.4, "columnspacing": 1.4, "borderpad": 0, "borderaxespad": 0}
    ax.legend(**(tight | place | options)).set_label("names")


def label_ends(ax: Axes) -> None:
    """Write each curve's name at its end, apart where two would overlap; call it when all is drawn."""
    for curve in ax.get_lines():
        name = str(curve.get_label())
        points = np.column_stack([np.asarray(values, dtype=float) for values in curve.get_data()])
        points = points[np.isfinite(points).all(axis=1)]
        if name.startswith("_") or not len(points):
            continue
        ax.annotate(
            name,
            points[-1],
            xytext=(9, 0),
            textcoords="offset points",
            va="center",
            color=curve.get_color(),
            fontweight="bold",
            fontsize=9.5,
            label="end-label",
            annotation_clip=False,
        )
    spread_labels(ax)


def spread_labels(ax: Axes) -> None:
    """Move the labels at the ends of curves apart, as little as the size of the axes needs."""
    labels = [text for text in ax.texts if isinstance(text, Annotation) and text.get_label() == "end-label"]
    if labels:
        dpi = ax.get_figure().get_dpi()  # type: ignore[union-attr]
        ends = np.array([ax.transData.transform(label.xy)[1] for label in labels])
        places = spread(ends, gap=1.25 * 9.5 * dpi / 72)
        for label, end, place in zip(labels, ends, places, strict=True):
            label.set_position((9, (place - end) * 72 / dpi))


def spread(ends: np.ndarray, gap: float) -> np.ndarray:
    """The numbers closest to ``ends`` that keep their order and stand at least ``gap`` apart.

    With ``k gap`` taken off the k-th smallest this asks for the closest non-decreasing sequence.
    """
    from scipy.optimize import isotonic_regression

    order, steps, places = np.argsort(ends, kind="stable"), gap * np.arange(len(ends)), np.empty(len(ends))
    places[order] = isotonic_regression(ends[order] - steps).x + steps
    return places
