"""Which color and marker does a method have, and what becomes of a color on a dark page?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from cycler import cycler
from matplotlib.colors import ListedColormap, to_rgb

# The hues of Okabe and Ito, darkened until a label in the color can be read on white (contrast 4.5 : 1).
GREY, BLUE, ORANGE = "#505050", "#0072b2", "#b85c00"
GREEN, PURPLE, BROWN = "#00835f", "#9a4a80", "#7a5c2e"
# Text, axes, grid, and the halo around a marker.
INK, MUTED, GRID, PAPER = "#111213", "#56585a", "#dcdddf", "#fffefd"

ON_DARK = {
    GREY: "#cacaca",
    BLUE: "#56b4e9",
    ORANGE: "#f0a13a",
    GREEN: "#35c795",
    PURPLE: "#e29ccb",
    BROWN: "#d3b483",
}
"""The tone of each hue on a dark page."""

IN_CSS = {
    INK: "currentColor",
    MUTED: "color-mix(in srgb, currentColor 78%, transparent)",
    GRID: "color-mix(in srgb, currentColor 15%, transparent)",
    PAPER: "var(--pst-color-background, var(--jp-layout-color0, Canvas))",
    **{light: f"light-dark({light}, {dark})" for light, dark in ON_DARK.items()},
}
"""What a page draws in place of each color: its own ink and paper, and the tone of its theme."""

DIVERGING = ListedColormap(
    # zero is transparent, so that it is the page itself in either theme
    [(*to_rgb(BLUE), -v) if v < 0 else (*to_rgb(ORANGE), v) for v in np.linspace(-1.0, 1.0, 255)],
    name="riembn-diverging",
)

STYLE: Any = {
    "figure.facecolor": "none",
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.06,
    "savefig.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlepad": 8,
    "axes.labelsize": 10,
    "axes.labelpad": 5,
    "axes.xmargin": 0.02,
    "axes.prop_cycle": cycler(color=[BLUE, ORANGE, GREEN, PURPLE, BROWN, GREY]),
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "text.color": INK,
    "font.family": "DejaVu Sans",
    "lines.linewidth": 2.0,
    "lines.markersize": 5,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "svg.fonttype": "none",  # text stays text: in the page's own font, and small
    "svg.hashsalt": "riembn",
}
"""Settings of matplotlib for all figures of the book, where they are not its defaults."""


@dataclass(frozen=True)
class Look:
    """How one method is drawn everywhere in the book."""

    label: str
    color: str
    marker: str
    width: float = 2.0


METHODS = {
    "sgd": Look("SGD", GREY, "s"),
    "sgd-g": Look("SGD-G", BLUE, "o"),
    "adam-g": Look("Adam-G", ORANGE, "^"),
    "psi-sgd": Look("PSI-SGD", GREEN, "D"),
}
NAMES = {
    "adam": "Adam",
    "adamw": "AdamW",
    "sgd-split": "SGD, two rates",
    "sgdp": "SGDP",
    "adamp": "AdamP",
    "pbwn": "PBWN",
    "nero": "Nero",
    "lars": "LARS",
    "muon": "Muon",
    "muon-rows": "Muon rows",
    "hyperball-sgd": "Hyperball",
    "adam-h": "AdamH",
    "rotational-sgd": "Rotational",
    "rotational-adamw": "Rotational AdamW",
    "oblique-sgd": "Oblique SGD",
    "oblique-adam": "Oblique Adam",
    "cayley-sgd": "Cayley SGD",
    "radial-brake": "Radial brake",
    "adam-srt": "AdamSRT",
}
"""The other methods of the package, as a page names them."""

_RELATIVES = ((PURPLE, "v"), (BROWN, "P"), (GREY, "X"))


def look(method: str, index: int = 0) -> Look:
    """How to draw ``method``; outside the book's four a thin line, told apart by ``index``."""
    if method in METHODS:
        return METHODS[method]
    color, marker = _RELATIVES[index % len(_RELATIVES)]
    return Look(NAMES.get(method, method), color, marker, width=1.2)
