"""What speaks for or against each claim in the runs of one cell: which runs are compared, and by which value.

A rule gives comparisons, or says why it has none. Runs are paired by seed. Of several comparisons that say the same
thing, those of tuned settings decide over those of preset ones; the others are shown beside them. A run that diverged
counts with the error of guessing where the claim is about the test error; it has no loss to compare.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Literal

import pandas

from .pairs import (
    CONTROL,
    RUNNING,
    TUNED,
    Pair,
    ablations,
    against_sgd,
    controls,
    matched,
    neighbors,
    rate,
    variants,
)
from .readings import (
    Untested,
    angle_over_balance,
    at_end,
    before_drops,
    change_in_stage,
    drops_of,
    loss,
    test_error,
    told_apart,
)
from .settings import NAMES, curves
from .verdicts import Question

# Differences that do not matter: in points of error, in loss, as a share of an angle, in points of disagreement.
POINTS, LOSS, ANGLE, DISAGREEMENT = 0.3, 0.01, 0.05, 1.0


@dataclass(frozen=True)
class Comparison:
    """Two groups of runs, a value a seed, and what a claim asks of them.

    Args:
        where: What is compared, and in which cell.
        at: How the settings were chosen: *tuned*, *at preset rates*, …; empty where that plays no part.
        values: One a seed.
        baseline: Those of the same seeds that they are compared with.
        unit: Of the values.
        question: What is asked.
        part: Comparisons of one part say the same thing, at other settings or by other means.
        rank: Within a part the highest decides; below 0 none does.
    """

    where: str
    at: str
    values: tuple[float, ...]
    baseline: tuple[float, ...]
    unit: str
    question: Question
    part: str = ""
    rank: int = 0


Rule = Callable[["pandas.DataFrame", str], Iterator["Comparison | str"]]


def lower_test_error(method: str, *, decays: bool = True) -> Rule:
    """A method ends with a lower test error than SGD; with weight decay, or without any."""

    def rule(runs: pandas.DataFrame, where: str) -> Iterator[Comparison | str]:
        # A run at a constant rate is about speed, and its rate may be tuned for that.
        runs = runs[(runs["decays"] == decays) & ~runs["constant"]]
        for pair in against_sgd(runs, method):
            yield from _compared(pair, where, test_error, "points", POINTS)

    return rule


def lower_loss(*methods: str, early_only: bool = False, decays: Collection[bool] = (True,)) -> Rule:
    """Methods have a lower training loss than SGD: before the rate drops, and at the end.

    The loss is that in evaluation mode, without augmentation; of runs that lack it the one they were trained on, a
    running average over augmented batches, which decides only where there is no other.
    """

    def rule(runs: pandas.DataFrame, where: str) -> Iterator[Comparison | str]:
        if runs["schedule"].iloc[0] != "steps" or runs["decays"].iloc[0] not in decays:
            return
        constant = bool(runs["constant"].iloc[0])
        times = {"at a constant rate" if constant else "before the first drop": ("early", before_drops)}
        if not early_only and not constant:
            times["at the end"] = "late", at_end
        for method in methods:
            for pair in against_sgd(runs, method):
                clean = not pair.runs["clean_loss"].isna().all()
                column = "clean_loss" if clean else "train_loss"
                unit = "in the training loss" if clean else "in the running training loss, of augmented batches"
                for when, (part, rows) in times.items():
                    # Rates that were chosen for early speed say more of it than rates chosen for the end.
                    rank = pair.rank + (constant and pair.rank == TUNED) if clean else RUNNING
                    yield from _compared(
                        pair, f"{when}, {where}", loss(column, rows), unit, LOSS,
                        part=f"{method} {part}", rank=rank,
                    )  # fmt: skip

    return rule


def ablated(field: str, used: float, without: float, symbol: str) -> Rule:
    """SGD-G and Adam-G end with a lower test error at the value used than without; and it is near the best value."""

    def rule(runs: pandas.DataFrame, where: str) -> Iterator[Comparison | str]:
        runs = runs[~runs["constant"] & runs["decays"]]
        for method in ("sgd-g", "adam-g"):
            mine = curves(runs, method)
            pairs = list(ablations(mine, field, used, without, symbol))
            for pair in pairs:
                yield from _compared(pair, where, test_error, "points", POINTS, part=pair.part)
            others = list(neighbors(mine, field, used, without, symbol))
            for pair in others:
                yield from _compared(
                    pair, where, test_error, "points", POINTS, asks="not worse", part=pair.part
                )
            if any(pair.rank == TUNED for pair in pairs) and not others:
                yield f"{NAMES[method]}, {where}: nothing on whether {used:g} is near the best, without other {symbol}"

    return rule


def plateaus(runs: pandas.DataFrame, where: str) -> Iterator[Comparison | str]:
    """After each drop, the clean training loss falls more within the stage than SGD's, or rises less.

    The change of a stage is the mean over its last third, minus the first value after the drop has settled. So what
    a drop does at once is left out, and a stretch that is flat, which is what a plateau is, counts like any other.
    """
    if not drops_of(runs) or "sgd" not in set(runs["method"]):
        return
    sgd = curves(runs, "sgd")
    pairs = [pair for method in ("sgd-g", "adam-g") for pair in matched(runs, method, sgd)]
    pairs += controls(runs, "lengths", "frozen", "SGD with its lengths frozen at the first drop", CONTROL)
    for pair in pairs:
        for stage in range(1, 1 + len(drops_of(runs))):
            yield from _compared(
                pair, f"after drop {stage}, {where}", change_in_stage(stage), "in the training loss", LOSS,
                part=f"{pair.first['method'].iloc[0]} {stage}", rank=pair.rank,
            )  # fmt: skip


def rate_control(runs: pandas.DataFrame, where: str) -> Iterator[Comparison | str]:
    """SGD turns its weight rows by the angle that rate and decay set, and decay does nothing that its rate does not do.

    Compared with the angle of balance is the root mean square angle, once it is reached; compared with decay on all
    parameters are decay on the invariant rows alone, and no decay with each row's effective rate replayed.
    """
    for curve in curves(runs[runs["decays"] & (runs["schedule"] == "steps")], "sgd"):
        one = curve.iloc[0]
        kind = "Nesterov" if one["nesterov"] else "heavy ball"
        settings = f"{rate(curve)}, decay {one['weight_decay']:g}, momentum {one['momentum']:g} ({kind})"
        try:
            angles = angle_over_balance(curve)
            yield Comparison(
                f"SGD {settings}: angle minus prediction, {where}", "",
                tuple(angles), (1.0,) * len(angles), "of the prediction", Question("equivalence", ANGLE), part=settings,
            )  # fmt: skip
        except Untested as why:
            yield f"SGD {settings}, {where}: {why}"
    replayed = "SGD without decay on its rows, their effective rates replayed,"
    pairs = controls(runs, "lengths", "replayed", replayed, rank=0)
    pairs += controls(runs, "decay_on", "invariant", "SGD with decay on invariant rows alone", rank=0)
    for pair in pairs:
        yield from _compared(pair, where, test_error, "points", POINTS, asks="equivalence", part=pair.label)


def other_lengths(runs: pandas.DataFrame, where: str) -> Iterator[Comparison | str]:
    """From rows of other lengths SGD ends elsewhere, further than rounding explains; the other methods do not.

    What is compared is the share of test images that two runs of one seed tell apart: one from rescaled rows, and one
    from weights that were moved by a rounding error, each with the run that neither befell.
    """
    for method, name in NAMES.items():
        mine = runs[runs["method"] == method]
        for plain in curves(mine, method):
            for scaled in variants(mine, plain, "row_scale"):
                for moved in variants(mine, plain, "start_noise"):
                    label = f"{name} {rate(plain)}, from rescaled rows minus from rounding, {where}"
                    try:
                        far, near = told_apart(plain, scaled, moved)
                    except Untested as why:
                        yield f"{label}: {why}"
                        continue
                    # The more SGD's ends differ the more they are as claimed; those of others should not.
                    question = Question("not worse", DISAGREEMENT)
                    if method == "sgd":
                        question = Question("difference", DISAGREEMENT, less_is_better=False)
                    yield Comparison(label, "", far, near, "points of disagreement", question, part=method)


def _compared(
    pair: Pair, where: str, read: Callable[[pandas.DataFrame], pandas.Series], unit: str, margin: float,
    *, asks: Literal["difference", "equivalence", "not worse"] = "difference", part: str = "", rank: int | None = None,
) -> Iterator[Comparison | str]:  # fmt: skip
    """What is read off each run of two curves, of the seeds for which both have it; or why there is too little."""
    what = f"{pair.label}, {where}"
    try:
        one, other = read(pair.first).dropna(), read(pair.second).dropna()
    except Untested as why:
        yield f"{what}: {why}"
        return
    seeds = sorted(set(one.index) & set(other.index))
    if len(seeds) < 2:
        yield f"{what}: {len(seeds)} seed(s) in common; two are needed"
        return
    question, decides = Question(asks, margin), pair.rank if rank is None else rank
    yield Comparison(what, pair.at, tuple(one[seeds]), tuple(other[seeds]), unit, question, part, decides)
