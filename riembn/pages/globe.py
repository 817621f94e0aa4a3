"""Draw a sphere, with what lies on it, so that a reader can turn it.

The drawing is SVG and complete as it is: in Jupyter, on paper, without scripts. On a page of the book
``_static/globe.js`` reads the scene that stands beside it, draws the same again, and lets the reader turn it.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

import numpy as np

from riembn.pages.drawn import behind, csv_text
from riembn.pages.page import check_texts, put
from riembn.pages.palette import BLUE, IN_CSS, INK, PAPER

_RADIUS = 200.0  # of the sphere, in units of the drawing
_GLOBE_CSS = """<style>
.riembn-globe { overflow: clip; overflow-clip-margin: 1rem }
.riembn-globe svg { margin-inline: auto; overflow: visible }
.riembn-globe text { font-weight: 600; paint-order: stroke; stroke-linejoin: round }
.riembn-globe svg[hidden] { display: none !important }
.riembn-globe .riembn-live { cursor: grab; touch-action: pan-y; user-select: none; -webkit-user-select: none }
.riembn-globe .riembn-live:active { cursor: grabbing }
.riembn-globe label { display: flex; gap: 0.6rem; justify-content: center; align-items: center; font-size: 0.85rem }
.riembn-globe p { margin: 0; text-align: center; font-size: 0.85rem; opacity: 0.8 }
</style>"""


class Globe:
    """A unit sphere in three dimensions, seen from far away, and what is put on it.

    Points and vectors are anything that numpy reads as an array. Each thing drawn can have a ``label``, a
    ``color`` of the palette, ``faint=True`` (in the background), and ``toward=(right, up)``: the direction in the
    drawing in which its label stands away from it.

    Args:
        azimuth: From where one looks, degrees around the z axis.
        elevation: And degrees above the x-y plane.
        reach: How far above and below the center of the sphere there is room, in radii.
    """

    def __init__(self, azimuth: float = 30.0, elevation: float = 20.0, *, reach: float = 1.12) -> None:
        self._view = (azimuth, elevation)
        self._reach = reach
        self._items: list[dict[str, Any]] = []
        self._walk: dict[str, Any] | None = None

    def curve(self, points: Any, label: str = "", **look: Any) -> None:
        """A line through ``points``, shape ``(k, 3)``; its label stands at its middle."""
        self._add("curve", np.asarray(points, dtype=float), label, **look)

    def arrow(self, at: Any, vector: Any, label: str = "", **look: Any) -> None:
        """A straight arrow from the point ``at``; its label stands at its tip."""
        at, vector = np.asarray(at, dtype=float), np.asarray(vector, dtype=float)
        self._add("arrow", at + np.linspace(0, 1, 13)[:, None] * vector, label, **look)

    def point(self, at: Any, label: str = "", *, color: str = INK, **look: Any) -> None:
        """A dot; ``hollow=True`` leaves it open."""
        self._add("point", np.asarray(at, dtype=float)[None], label, color=color, **look)

    def plane(self, at: Any, along: Any, *, size: float = 0.55, **look: Any) -> None:
        """A square of the tangent plane at ``at``, half a side ``size`` long, two sides parallel to ``along``."""
        at, along = np.asarray(at, dtype=float), np.asarray(along, dtype=float)
        side = size * along / np.linalg.norm(along)
        other = np.cross(at, side)
        corners = [at + a * side + b * other for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
        self._add("plane", np.array(corners), "", **look)

    def walk(self, points: Any, vectors: Any, angles: Any) -> None:
        """Let the reader choose how far to walk: a slider moves a dot along ``points`` with a vector carried along.

        Where there are no scripts the drawing stays as it is without.

        Args:
            points: The places, shape ``(k, 3)``.
            vectors: What is carried, at each place, same shape.
            angles: How far each place is from the first, radians, shape ``(k,)``.

        Raises:
            ValueError: If the three are not equally long.
        """
        told = {"points": points, "vectors": vectors, "angles": angles}
        told = {name: np.round(np.asarray(one, dtype=float), 4).tolist() for name, one in told.items()}
        if len({len(one) for one in told.values()}) != 1:
            lengths = ", ".join(f"{len(one)} {name}" for name, one in told.items())
            raise ValueError(f"walk: {lengths}; each place needs its vector and its angle.")
        self._walk = told

    def show(self, *, caption: str, alt: str, name: str) -> None:
        """Put the sphere on the page; arguments, and what is refused, as for `riembn.pages.show`."""
        check_texts(caption, alt)
        scene = {"view": self._view, "reach": self._reach, "alt": alt, "items": self._items, "walk": self._walk}
        # On a phone the drawing is about half as large, and what is written in it should not be.
        drawings = [self._svg(alt, f"{name}-{i}", *how) for i, how in enumerate(_SIZES)]
        rows = [(item["kind"], item["label"], *point) for item in self._items for point in item["points"]]
        told = behind(name, csv_text(("kind", "label", "x", "y", "z"), rows))
        put(" riembn-globe", "".join(drawings), scene, told, caption=caption, alt=alt, css=_GLOBE_CSS)

    def _add(
        self,
        kind: str,
        points: Any,
        label: str,
        *,
        color: str = BLUE,
        faint: bool = False,
        hollow: bool = False,
        toward: tuple[float, float] | None = None,
    ) -> None:
        look = {
            "paint": [color, IN_CSS[color]],
            "faint": bool(faint),
            "hollow": bool(hollow),
            "toward": toward,
        }
        self._items.append({"kind": kind, "points": np.round(points, 4).tolist(), "label": label, **look})

    def _svg(self, alt: str, key: str, kind: str, wide: float, scale: float) -> str:
        drawing = _Drawing(self._view, scale)
        for line in _graticule():
            drawing.line(line, "stroke:currentColor", width=0.8, opacity=0.17)
        for item in sorted(self._items, key=lambda item: item["kind"] == "point"):  # dots on top
            drawing.item(item)
        high, half = _RADIUS * self._reach, _RADIUS * wide
        ball = (
            f'<radialGradient id="{escape(key)}" cx="0.38" cy="0.32" r="0.75">'
            '<stop offset="0" stop-color="currentColor" stop-opacity="0.01"/>'
            '<stop offset="1" stop-color="currentColor" stop-opacity="0.15"/></radialGradient>'
            f'<circle r="{_RADIUS:g}" fill="url(#{escape(key)})" stroke="currentColor" stroke-opacity="0.35"/>'
        )
        behind, before, names = ("".join(layer) for layer in drawing.layers)
        return (
            f'<svg class="{kind}" role="img" aria-label="{escape(alt)}" xmlns="http://www.w3.org/2000/svg" '
            f'viewBox="{-half:g} {-high:g} {2 * half:g} {2 * high:g}" style="max-width:{2 * half:g}px">'
            f"{behind}{ball}{before}{names}</svg>"
        )


_SIZES = (("riembn-screen", 1.6, 1.0), ("riembn-phone", 1.25, 1.45))
"""Class, room to the left and right in radii, and size of lines and letters of the two drawings."""


class _Drawing:
    """What lies behind the sphere's surface, what lies before it, and names: three layers, as in globe.js."""

    def __init__(self, view: tuple[float, float], scale: float) -> None:
        (ca, sa), (ce, se) = ((np.cos(t), np.sin(t)) for t in np.radians(view))
        # rows: to the right, up, and toward the reader
        self._axes = np.array([[-sa, ca, 0], [-se * ca, -se * sa, ce], [ce * ca, ce * sa, se]])
        self._scale = scale
        self.layers: list[list[str]] = [[], [], []]

    def item(self, item: dict[str, Any]) -> None:
        kind, points, opacity = item["kind"], np.array(item["points"]), 0.45 if item["faint"] else 1.0
        seen = points @ self._axes.T
        stroke, fill = (_paint(which, item["paint"]) for which in ("stroke", "fill"))
        end = seen[len(seen) // 2 if kind == "curve" else -1]
        fade = opacity * (0.3 if _hidden(end) else 1)
        if kind == "plane":
            front = bool(seen[:, 2].sum() > 0)
            self._put(
                front,
                f'<path d="{_path(seen)}Z" style="{fill};fill-opacity:0.13;{stroke};stroke-opacity:0.5"/>',
            )
        elif kind == "point":
            inside = _paint("fill", [PAPER, IN_CSS[PAPER]]) if item["hollow"] else fill
            look = f"{inside};{stroke};stroke-width:{2 * self._scale:g};opacity:{fade:g}"
            x, y, _ = _RADIUS * end
            self._put(
                not _hidden(end),
                f'<circle cx="{x:.1f}" cy="{-y:.1f}" r="{5 * self._scale:g}" style="{look}"/>',
            )
        else:
            share = self._head(seen, f"{fill};opacity:{fade:g}") if kind == "arrow" else 1.0
            self.line(points[0] + share * (points - points[0]), stroke, width=2.6, opacity=opacity)
        if item["label"]:
            away = seen[-1] - seen[0] if kind == "arrow" else end
            self._name(item["label"], end, item["toward"] or away[:2], f"{fill};opacity:{max(fade, 0.5):g}")

    def line(self, points: np.ndarray, stroke: str, *, width: float, opacity: float) -> None:
        """A line in parts, each of them hidden by the sphere or not."""
        seen = points @ self._axes.T
        hidden = [_hidden(middle) for middle in (seen[1:] + seen[:-1]) / 2]
        first = 0
        for k in range(1, len(hidden) + 1):
            if k == len(hidden) or hidden[k] != hidden[first]:
                look = f"fill:none;{stroke};stroke-width:{width * self._scale:g};stroke-linecap:round"
                fade = opacity * (0.3 if hidden[first] else 1)
                self._put(
                    not hidden[first],
                    f'<path d="{_path(seen[first : k + 1])}" style="{look};opacity:{fade:g}"/>',
                )
                first = k

    def _head(self, seen: np.ndarray, look: str) -> float:
        """Draw the head of an arrow; the share of its length that is left to the line."""
        way = (seen[-1] - seen[0])[:2]
        length = float(np.hypot(*way))
        size = min(0.075 * self._scale, 0.6 * length)
        if size < 1e-6:
            return 1.0
        unit = way / length
        base, across = seen[-1][:2] - size * unit, 0.38 * size * np.array([-unit[1], unit[0]])
        corners = np.array([seen[-1][:2], base + across, base - across])
        self._put(not _hidden(seen[-1]), f'<path d="{_path(corners)}Z" style="{look}"/>')
        return 1 - 0.7 * size / length

    def _name(self, label: str, at: np.ndarray, away: Any, look: str) -> None:
        right, up = np.asarray(away) / max(float(np.hypot(*away)), 1e-9)
        font = 16 * self._scale
        x, y = _RADIUS * at[0] + 0.75 * font * right, -_RADIUS * at[1] - 0.85 * font * up + 0.35 * font
        anchor = "middle" if abs(right) < 0.35 else "start" if right > 0 else "end"
        halo = f"{_paint('stroke', [PAPER, IN_CSS[PAPER]])};stroke-width:{0.25 * font:g}"
        place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{font:g}"'
        self._put(2, f'<text {place} style="{look};{halo}">{escape(label)}</text>')

    def _put(self, layer: int, what: str) -> None:
        self.layers[int(layer)].append(what)


def _hidden(seen: np.ndarray) -> bool:
    """Whether the sphere is between the reader and a point (right, up, toward the reader)."""
    inside = 1 - seen[0] ** 2 - seen[1] ** 2
    return bool(inside > 0 and seen[2] < np.sqrt(inside) - 0.03)


def _path(seen: np.ndarray) -> str:
    return "M" + "L".join(f"{_RADIUS * x:.1f} {-_RADIUS * y:.1f}" for x, y in seen[:, :2])


def _paint(which: str, paint: list[str]) -> str:
    # both, because a browser that does not know light-dark() keeps the first
    return f"{which}:{paint[0]};{which}:{paint[1]}"


def _graticule() -> Iterator[np.ndarray]:
    """Meridians and parallels, 30 degrees apart."""
    t = np.radians(np.arange(0, 361, 6))
    for a in np.radians(np.arange(0, 180, 30)):
        yield np.stack([np.cos(a) * np.cos(t), np.sin(a) * np.cos(t), np.sin(t)], axis=1)
    for b in np.radians(np.arange(-60, 61, 30)):
        yield np.stack([np.cos(b) * np.cos(t), np.cos(b) * np.sin(t), np.full_like(t, np.sin(b))], axis=1)
