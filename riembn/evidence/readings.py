"""What is read off each run of a curve, by seed: errors, losses, how the loss moves in a stage, and angles.

A run that diverged counts with the error of guessing where its test error is read; it has no loss and no angle.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import stats

if TYPE_CHECKING:
    import pandas

__all__ = [
    "Untested",
    "angle_at_drop",
    "at_end",
    "balanced_angle",
    "before_drops",
    "change_in_stage",
    "drops_of",
    "loss",
    "predicted_angle",
    "test_error",
    "told_apart",
]

CLASSES = {"cifar100": 100}  # ten, elsewhere
LONG = 3.0  # a stage of so many time constants lets a row's length come within 5 % of its balance
SETTLING = 100  # steps after a drop that belong to the drop and not to the stage
SHORTEST = 3  # epochs that a stage must have after that


class Untested(Exception):
    """Why some runs do not test a claim."""


def test_error(runs: pandas.DataFrame) -> pandas.Series:
    """The test error at the end; a run that diverged counts as guessing."""
    classes = CLASSES.get(runs["dataset"].iloc[0], 10)
    ends = stats.at_end(runs, diverged={"test_error": 100 * (1 - 1 / classes)})
    return ends.set_index("seed")["test_error"].astype(float)


def loss(column: str, rows: Callable[[pandas.DataFrame], pandas.DataFrame]) -> Callable[[Any], pandas.Series]:
    def read(runs: pandas.DataFrame) -> pandas.Series:
        _all_finished(runs)
        return rows(runs).set_index("seed")[column].astype(float)

    return read


def at_end(runs: pandas.DataFrame) -> pandas.DataFrame:
    return runs.groupby("digest").tail(1)


def before_drops(runs: pandas.DataFrame) -> pandas.DataFrame:
    """The last epoch of each run before the rate first drops."""
    return at_end(runs[runs["current_lr"] == runs["lr"]])


def change_in_stage(stage: int) -> Callable[[pandas.DataFrame], pandas.Series]:
    """How far the clean training loss moves within a stage, counted from 0."""

    def read(runs: pandas.DataFrame) -> pandas.Series:
        _all_finished(runs)
        if runs["clean_loss"].isna().all():
            raise Untested("the clean training loss was not recorded")
        first, last = [*drops_of(runs), runs["epochs"].iloc[0]][stage - 1 : stage + 1]
        start = runs[runs["epoch"] == first].set_index("seed")["step"]
        within = runs[(runs["epoch"] > first) & (runs["epoch"] <= last) & runs["clean_loss"].notna()]
        within = within[within["step"] - within["seed"].map(start) >= SETTLING]
        changes = {}
        for seed, epochs in within.groupby("seed"):
            losses = epochs.sort_values("epoch")["clean_loss"]
            if len(losses) >= SHORTEST:
                changes[seed] = losses.iloc[-math.ceil(len(losses) / 3) :].mean() - losses.iloc[0]
        if len(changes) < within["seed"].nunique() or not changes:
            raise Untested(f"the stage has fewer than {SHORTEST} epochs with a clean loss after {SETTLING} steps")
        import pandas

        return pandas.Series(changes)

    return read


def told_apart(plain: pandas.DataFrame, *others: pandas.DataFrame) -> list[tuple[float, ...]]:
    """Percent of the test images whose class two runs of a seed do not agree on, for each of the others."""
    if "predictions" not in plain.columns:
        raise Untested("no predictions were recorded")
    read = [at_end(curve).set_index("seed")["predictions"] for curve in (plain, *others)]
    seeds = sorted(set.intersection(*(set(found[found != ""].dropna().index) for found in read)))
    if len(seeds) < 2:
        raise Untested(f"{len(seeds)} seed(s) in common; two are needed")

    def apart(first: str, second: str) -> float:
        pairs = list(zip(first.split(), second.split(), strict=True))
        return 100 * sum(one != other for one, other in pairs) / len(pairs)

    return [tuple(apart(read[0][s], other[s]) for s in seeds) for other in read[1:]]


def drops_of(runs: pandas.DataFrame) -> list[int]:
    return [int(epoch) for epoch in str(runs["drops"].iloc[0]).split()]


def angle_at_drop(curve: pandas.DataFrame) -> float:
    """Radians a step in the last epoch at the full rate, mean over seeds."""
    last = before_drops(curve)
    column = "angle" if last["angle_rms"].isna().any() else "angle_rms"
    return float(last[column].astype(float).mean())


def balanced_angle(curve: pandas.DataFrame) -> pandas.Series:
    """Root mean square angle in the last epoch at the full rate, if that was held for long enough."""
    _all_finished(curve)
    last, one = before_drops(curve), curve.iloc[0]
    if one["lr"] * one["weight_decay"] > (1 - math.sqrt(one["momentum"])) ** 2:
        raise Untested("rate times decay is above (1 - √momentum)², where there is no balance")
    constant = (1 - one["momentum"]) / (4 * one["lr"] * one["weight_decay"])
    held = float(last["step"].min() / constant)
    if held < LONG:
        raise Untested(f"the first rate is held for {held:.2g} time constants, and the balance takes {LONG:g}")
    if last["angle_rms"].isna().any():
        raise Untested("the root mean square angle was not recorded")
    if len(last) < 2:
        raise Untested("one seed; two are needed")
    return last["angle_rms"]


def predicted_angle(run: Any) -> float:
    """The angle of balance: sqrt(2 lr decay / (1 + a)) with heavy ball's momentum a, and more with Nesterov's.

    Source: Wan et al. (2020) and Kosson et al. (2023) for heavy ball; the factor sqrt(1 + 2a - 2a³) is derived in
    the same way, and `ci/tests/test_claims.py` checks both on a made-up loss.
    """
    a = run["momentum"]
    factor = 1 + 2 * a - 2 * a**3 if run["nesterov"] else 1.0
    return math.sqrt(2 * run["lr"] * run["weight_decay"] * factor / (1 + a))


def _all_finished(runs: pandas.DataFrame) -> None:
    if (runs["status"] == "diverged").any():
        raise Untested("a run diverged, and has no loss to compare")
