"""Which curves are compared with which: methods with SGD, and ablations with what they leave out.

A curve is the runs of a cell that differ in the seed alone. What is compared had its settings chosen alike, or has the
same settings but for the field in question.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas

from .readings import angle_at_drop
from .settings import NAMES, OF_METHOD, curves

# What decides over what; a comparison of rank below 0 never does. A running loss is the last to be asked.
TUNED, PRESET, OWN, RUNNING, CONTROL = 3, 2, 1, 0, -1
AT_EDGE = ", the best at the edge of its grid"
MATCHED = 0.1  # by how much the angles of two methods may differ to be called equal


@dataclass(frozen=True)
class Pair:
    """Two curves, what to call their comparison, how their settings were chosen, and what it decides over."""

    label: str
    at: str
    first: pandas.DataFrame
    second: pandas.DataFrame
    rank: int
    part: str = ""

    @property
    def runs(self) -> pandas.DataFrame:
        """Those of both curves."""
        return pandas.concat([self.first, self.second])


# Column of the method's runs and of SGD's that says so; what to call it.
_CHOICES = (
    ("tries", "tries", "tuned", TUNED),
    ("preset", "preset", "at preset rates", PRESET),
    ("own", "preset", "at a rate of our own choice", OWN),
)


def against_sgd(runs: pandas.DataFrame, method: str) -> Iterator[Pair]:
    """Curves of a method with curves of SGD whose settings were chosen alike."""
    runs = runs[runs["whole"]]
    for mine, of_sgd, at, rank in _CHOICES:
        baselines = curves(runs[runs[of_sgd] > 0], "sgd")
        for first in curves(runs[runs[mine] > 0], method) if baselines else ():
            for second in baselines:
                if rank < TUNED and _are_tuned(first, second):
                    continue  # said already
                label = f"{NAMES[method]} {rate(first)} minus SGD {rate(second)}"
                yield Pair(label, _how_tuned(first, second) if rank == TUNED else at, first, second, rank)


def ablations(
    mine: Sequence[pandas.DataFrame], field: str, used: float, without: float, symbol: str
) -> Iterator[Pair]:
    """Runs at the value used with runs without: each at its own tuned rate, and both at the same settings."""
    for first in (curve for curve in mine if curve[field].iloc[0] == used):
        for second in (curve for curve in mine if curve[field].iloc[0] == without):
            method = NAMES[first["method"].iloc[0]]
            what = f"{symbol} = {used:g} minus {'no bound' if without else f'{symbol} = 0'}"
            if _are_tuned(first, second, by="rate_tries") and _alike(first, second, but=(field, "lr")):
                label = f"{method}, {what}, {rate(first)} and {rate(second)}"
                yield Pair(label, _how_tuned(first, second, by="rate_tries"), first, second, TUNED, method)
            elif _alike(first, second, but=(field,)):
                at, rank = _chosen(first, mine, field, used)
                yield Pair(f"{method} {rate(first)}, {what}", at, first, second, rank, method)


def neighbors(
    mine: Sequence[pandas.DataFrame], field: str, used: float, without: float, symbol: str
) -> Iterator[Pair]:
    """Runs at the value used and its tuned rate, with runs at other values and else the same settings."""
    for first in (curve for curve in mine if curve[field].iloc[0] == used and _are_tuned(curve, by="rate_tries")):
        for second in mine:
            value = second[field].iloc[0]
            if value not in (used, without) and _alike(first, second, but=(field,)):
                label = f"{NAMES[first['method'].iloc[0]]} {rate(first)}, {symbol} = {used:g} minus {value:g}"
                yield Pair(label, "tuned for the first", first, second, TUNED, f"{label} beside")


def _chosen(curve: pandas.DataFrame, mine: Sequence[pandas.DataFrame], field: str, used: float) -> tuple[str, int]:
    """How the rate of two curves with the same settings was chosen."""
    if _are_tuned(curve, by="rate_tries"):
        return "at the rate tuned for the first", PRESET
    for tuned in mine:
        one = tuned.iloc[0]
        if one["rate_tries"] and one[field] == used and _alike(curve, tuned, but=("lr",)):
            ratio = curve["lr"].iloc[0] / one["lr"]
            # Stability is asked at a rate that is set too high: four times the best one.
            return f"at {ratio:g} × the tuned rate", TUNED if math.isclose(ratio, 4) else PRESET
    return ("at preset rates" if curve["preset"].iloc[0] else "at another rate"), PRESET


def matched(runs: pandas.DataFrame, method: str, sgd: Sequence[pandas.DataFrame]) -> Iterator[Pair]:
    """Curves of a method with curves of SGD that turn by the same angle when the rate first drops, if there are."""
    angles = [angle_at_drop(second) for second in sgd]
    for first in curves(runs, method):
        one, angle = first.iloc[0], angle_at_drop(first)
        for second, of_sgd in zip(sgd, angles, strict=True):
            ratio = angle / of_sgd
            parts = "" if one["whole"] else f" with ν = {one['grad_clip']:g}, α = {one['alpha']:g}"
            label = f"{NAMES[method]}{parts} {rate(first)} minus SGD {rate(second)}"
            if abs(ratio - 1) <= MATCHED:
                yield Pair(label, "at matched angles", first, second, TUNED + 1)
            elif _are_tuned(first, second):
                yield Pair(label, _how_tuned(first, second), first, second, TUNED)
            elif first["preset"].iloc[0] and second["preset"].iloc[0]:
                yield Pair(label, "at preset rates", first, second, PRESET)
            elif ratio == ratio and not one["rate_tries"]:  # a tuned ablation is about something else
                yield Pair(label, f"at angles {ratio:.2g} times SGD's", first, second, OWN)


def controls(runs: pandas.DataFrame, field: str, value: str, what: str, rank: int) -> list[Pair]:
    """Runs of SGD that differ from plain ones in one field that says what its decay or its lengths do."""
    changed = runs[(runs["method"] == "sgd") & (runs[field] == value)]
    return [
        Pair(f"{what} minus SGD, both {rate(plain)}", "", curve, plain, rank)
        for _, curve in changed.groupby("curve", sort=False)
        for plain in curves(runs, "sgd")
        if _alike(curve, plain, but=(field,))
    ]


def variants(runs: pandas.DataFrame, plain: pandas.DataFrame, field: str) -> list[pandas.DataFrame]:
    """The curves that differ from a plain one in a field that is zero there."""
    changed = runs[runs[field] > 0]
    groups = [curve for _, curve in changed.groupby("curve", sort=False)]
    return [curve for curve in groups if _alike(curve, plain, but=(field,))]


def _alike(first: pandas.DataFrame, second: pandas.DataFrame, but: Sequence[str]) -> bool:
    """Whether two curves of a cell have equal settings, all but some."""
    one, other = first.iloc[0], second.iloc[0]
    names = [name for name in OF_METHOD if name not in but]
    return all(one[name] == other[name] or (one[name] != one[name] and other[name] != other[name]) for name in names)


def rate(curve: pandas.DataFrame) -> str:
    """The rate of a curve, in words."""
    return f"at rate {curve['lr'].iloc[0]:g}"


def _are_tuned(*several: pandas.DataFrame, by: str = "tries") -> bool:
    return all(curve[by].iloc[0] for curve in several)


def _how_tuned(first: pandas.DataFrame, second: pandas.DataFrame, by: str = "tries") -> str:
    """What a reader should know of two tuned curves: the effort for each, and whether it may have been too little."""
    tries = [int(curve[by].iloc[0]) for curve in (first, second)]
    effort = f"{tries[0]} tries each" if tries[0] == tries[1] else f"{tries[0]} tries against {tries[1]}"
    at_edge = any(curve[by.replace("tries", "at_edge")].iloc[0] for curve in (first, second))
    return f"tuned, {effort}" + (AT_EDGE if at_edge else "")
