"""Write the numbers at a logarithmic axis as plain text, and whole ones at an axis of epochs."""

from __future__ import annotations

import math
import re
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator, LogFormatterSciNotation, MaxNLocator

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_PLAIN = -3, 4  # the decades from 0.001 to 10,000: an axis that labels others writes powers of ten


class Numbers(LogFormatterSciNotation):
    """``0.04``, or ``10⁻⁵`` where an axis goes far; matplotlib typesets a formula, which takes longer than all else."""

    def __call__(self, x: Any, pos: Any = None) -> str:
        formula = super().__call__(x, pos)
        if formula and self._is_plain():
            return f"{x:,g}"
        text = re.sub(r"^\$\\mathdefault\{(.*)\}\$$", r"\1", formula).replace(r"\times", "×")
        return re.sub(r"\^\{([^}]*)\}", lambda power: power[1].translate(_RAISED), text).replace("-", "\u2212")

    def _is_plain(self) -> bool:
        low, high = sorted(self.axis.get_view_interval())  # type: ignore[union-attr]
        return math.ceil(math.log10(low)) >= _PLAIN[0] and math.floor(math.log10(high)) <= _PLAIN[1]


def plain_numbers(fig: Figure) -> None:
    """Have axes that matplotlib would label with formulas label themselves with text, and epochs with whole numbers."""
    for axis in (axis for ax in fig.axes for axis in (ax.xaxis, ax.yaxis)):
        major, minor = axis.get_major_formatter(), axis.get_minor_formatter()
        if type(major) is LogFormatterSciNotation:
            axis.set_major_formatter(Numbers(labelOnlyBase=major.labelOnlyBase))
        if type(minor) is LogFormatterSciNotation:
            axis.set_minor_formatter(Numbers(labelOnlyBase=minor.labelOnlyBase))
        if axis.get_label_text().startswith("epoch") and type(axis.get_major_locator()) is AutoLocator:
            axis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
