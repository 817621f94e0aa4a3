"""Write the powers of ten at a logarithmic axis as plain text."""

from __future__ import annotations

import re
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterSciNotation

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class Powers(LogFormatterSciNotation):
    """``10⁻³``, where matplotlib typesets a formula, which takes longer than all else of a figure."""

    def __call__(self, x: Any, pos: Any = None) -> str:
        formula = super().__call__(x, pos)
        text = re.sub(r"^\$\\mathdefault\{(.*)\}\$$", r"\1", formula).replace(r"\times", "×")
        return re.sub(r"\^\{([^}]*)\}", lambda power: power[1].translate(_RAISED), text).replace("-", "\u2212")


def plain_powers(fig: Figure) -> None:
    """Have the axes of a figure that matplotlib would label with formulas label themselves with text."""
    for axis in (axis for ax in fig.axes for axis in (ax.xaxis, ax.yaxis)):
        major, minor = axis.get_major_formatter(), axis.get_minor_formatter()
        if type(major) is LogFormatterSciNotation:
            axis.set_major_formatter(Powers(labelOnlyBase=major.labelOnlyBase))
        if type(minor) is LogFormatterSciNotation:
            axis.set_minor_formatter(Powers(labelOnlyBase=minor.labelOnlyBase))
