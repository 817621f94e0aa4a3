"""What is read off each run of a curve, by seed: errors, losses, how the loss moves in a stage, and angles.

A run that diverged counts with the error of guessing where its test error is read; it has no loss and no angle.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pandas

from . import stats

CLASSES = {"cifar100": 100}  # ten, elsewhere
LONG = 3.0  # a stage of so many time constants lets a row's length come within 5 % of its balance
DRIFT = 0.1  # of 2 lr decay: what the lengths' drift may add to it at balance, 5 % of the angle
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
    return at_end(runs[at_full_rate(runs)])


def at_full_rate(runs: pandas.DataFrame) -> pandas.Series:
    """Whether each epoch is at the rate that the configuration gives."""
    return (runs["current_lr"] / runs["lr"] - 1).abs() < 1e-6  # records keep seven digits


def change_in_stage(stage: int) -> Callable[[pandas.DataFrame], pandas.Series]:
    """How far the clean training loss moves within a stage, counted from 0."""

    def read(runs: pandas.DataFrame) -> pandas.Series:
        _all_finished(runs)
        if runs["clean_loss"].isna().all():
            raise Untested("the clean training loss was not recorded")
        first, last = [*drops_of(runs), runs["epochs"].iloc[0]][stage - 1 : stage + 1]
        runs = runs[["seed", "epoch", "step", "clean_loss"]]
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


def angle_over_balance(curve: pandas.DataFrame) -> pandas.Series:
    """Root mean square angle over its prediction, by seed, in the last third of the epochs at the full rate.

    Only where lengths have come to rest: by no more than `DRIFT` may they still move the mean square angle. What is
    left of it is part of the prediction.
    """
    _all_finished(curve)
    one = curve.iloc[0]
    full = curve[at_full_rate(curve)]
    pull = 2 * one["lr"] * one["weight_decay"]
    if pull / 2 > (1 - math.sqrt(one["momentum"])) ** 2:
        raise Untested("rate times decay is above (1 - √momentum)², where there is no balance")
    held = float(full.groupby("seed")["step"].max().min() * 2 * pull / (1 - one["momentum"]))
    if held < LONG:
        raise Untested(f"the first rate is held for {held:.2g} time constants, and the balance takes {LONG:g}")
    if full["angle_rms"].isna().any():
        raise Untested("the root mean square angle was not recorded")
    if full["seed"].nunique() < 2:
        raise Untested("one seed; two are needed")
    if full["epoch"].max() < 2:
        raise Untested("one epoch at the full rate; two are needed to see how far lengths move")
    measured, shares = {}, {}
    for seed, epochs in full.groupby("seed"):
        # One epoch more than is averaged: the lengths at the end of it are those that the others start from.
        window = epochs.sort_values("epoch").iloc[-math.ceil(len(epochs) / 3) - 1 :]
        first, last = window.iloc[0], window.iloc[-1]
        drift = 2 * math.log(last["weight_norm"] / first["weight_norm"]) / (last["step"] - first["step"])
        shares[seed] = (1 - one["momentum"]) * drift / pull
        measured[seed] = math.sqrt(window["angle_rms"].iloc[1:].astype(float).pow(2).mean())
    drift = sum(shares.values()) / len(shares)
    if abs(drift) > DRIFT or min(shares.values()) <= -1:
        moved = 100 * abs(math.sqrt(max(0.0, 1 + drift)) - 1)
        raise Untested(
            f"lengths still {'fall' if drift < 0 else 'grow'}, which moves the angle by {moved:.0f} %; "
            f"at most {100 * (1 - math.sqrt(1 - DRIFT)):.0f} % is taken for balance"
        )
    each = {seed: predicted_angle(one, share * pull / (1 - one["momentum"])) for seed, share in shares.items()}
    return pandas.Series({seed: angle / each[seed] for seed, angle in measured.items()})


def predicted_angle(run: Any, drift: float = 0.0) -> float:
    """The root mean square angle of a step, radians, that rate and decay set while lengths have this drift.

    With heavy ball's momentum a it is sqrt([2 lr decay + (1 - a) drift] / (1 + a)) in the mean over a long stretch,
    whatever the gradients are, since they are orthogonal to the row (chapter 08); drift² is left out. At rest it
    is the angle of balance of Wan et al. (2021) and Kosson et al. (2024). Nesterov's is larger by
    sqrt(1 + 2a - 2a³) if the gradients of different steps are not correlated. `ci/tests/test_claims.py` checks
    both on a made-up loss.

    Args:
        run: Has ``lr``, ``weight_decay``, ``momentum`` and ``nesterov``.
        drift: Of ln |w|², a step.
    """
    a = run["momentum"]
    factor = 1 + 2 * a - 2 * a**3 if run["nesterov"] else 1.0
    return math.sqrt((2 * run["lr"] * run["weight_decay"] + (1 - a) * drift) * factor / (1 + a))


def _all_finished(runs: pandas.DataFrame) -> None:
    if (runs["status"] == "diverged").any():
        raise Untested("a run diverged, and has no loss to compare")
