"""What do records say of each claim: supported, not supported, undecided, or not tested?

The rules are those of the chapters. Runs are paired by seed; an interval that contains zero decides nothing;
p-values are corrected by Holm's method for all comparisons of a table, which is one cell (network, data set,
schedule) of one claim. A run that diverged counts with the error of guessing where the claim is about the test
error, and leaves its cell undecided where it is about a loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..experiment.config import FIELDS
from ..experiment.presets import method_settings
from . import stats

if TYPE_CHECKING:
    import pandas

__all__ = ["CLAIMS", "Claim", "Finding", "Verdict", "judge"]

SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "not supported", "undecided"
NOT_TESTED = "not tested by these records"

NAMES = {"sgd": "SGD", "sgd-g": "SGD-G", "adam-g": "Adam-G", "psi-sgd": "PSI-SGD"}
CLASSES = {"cifar100": 100}  # ten, elsewhere
LEVEL = 0.05
LONG = 3.0  # a stage of so many times T lets a vector's length come within 5 % of its balance
MARGIN = 0.1  # by how much a measured angle may miss the predicted one

# What a method brings with it; all other fields but the seed make the cell in which methods are compared.
_OF_METHOD = ("method", "lr", "rule", "rest_lr", "momentum", "rest_momentum", "grad_clip", "alpha", "beta2")
_CELL = [name for name in FIELDS if name not in (*_OF_METHOD, "seed")]
_NAMED = ["network", "width", "dataset", "train_size", "epochs"]


@dataclass(frozen=True)
class Finding:
    """One comparison: estimate and 95 % interval over ``n`` seeds, and what follows."""

    where: str
    verdict: str
    estimate: float
    low: float
    high: float
    n: int
    unit: str
    note: str = ""

    def __str__(self) -> str:
        numbers = f"{self.estimate:+.3g} ({self.low:+.3g} to {self.high:+.3g}) {self.unit}, n = {self.n}"
        return f"{self.where}: {numbers}: {self.verdict}" + (f" ({self.note})" if self.note else "")


class _Untested(Exception):
    """Why the runs of a cell do not test a claim."""


Rule = Callable[["pandas.DataFrame", str], Iterator["Finding | str"]]


@dataclass(frozen=True)
class Verdict:
    """What the records say of a claim, and by which comparisons."""

    key: str
    claim: str
    source: str
    verdict: str
    findings: tuple[Finding, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Claim:
    """A claim, who makes it, and the rule that finds in the runs of a cell what speaks for or against it.

    Without a rule it is about single steps or about the space itself: ``elsewhere`` says what checks it.
    """

    text: str
    source: str
    rule: Rule | None = None
    elsewhere: str = ""

    def judge(self, key: str, frame: pandas.DataFrame) -> Verdict:
        """The verdict of all cells together: contradicted by one, or supported by all, or undecided."""
        found = list(_in_cells(self.rule, frame)) if self.rule and not frame.empty else []
        findings = tuple(f for f in found if isinstance(f, Finding))
        notes = [f for f in found if isinstance(f, str)]
        said = [finding.verdict for finding in findings]
        if not said:
            verdict = NOT_TESTED
        elif CONTRADICTED in said:
            verdict = CONTRADICTED
        else:
            verdict = SUPPORTED if set(said) == {SUPPORTED} else UNDECIDED
        note = self.elsewhere or "; ".join(dict.fromkeys(notes))
        return Verdict(key, self.text, self.source, verdict, findings, note)


def judge(frame: pandas.DataFrame) -> list[Verdict]:
    """What tidy records, as `riembn.Store.frame` gives them, say of every claim in `CLAIMS`."""
    return [claim.judge(key, frame) for key, claim in CLAIMS.items()]


def _in_cells(rule: Rule, frame: pandas.DataFrame) -> Iterator[Finding | str]:
    """What a rule finds in the runs of each cell: findings, or why there are none."""
    for _, alike in frame.groupby(_NAMED, dropna=False, sort=False):
        one: Any = alike.iloc[0]
        size = f" ({int(one['train_size']):,} images)" if one["train_size"] == one["train_size"] else ""
        name = f"{one['network']} × {one['width']:g} on {one['dataset']}{size}, {one['epochs']} epochs"
        apart = [field for field in _CELL if alike[field].nunique(dropna=False) > 1]
        for _, runs in alike.groupby(_CELL, dropna=False, sort=False):
            where = ", ".join([name, *(f"{field}={runs[field].iloc[0]}" for field in apart)])
            try:
                yield from rule(runs, where)
            except _Untested as why:
                yield f"{where}: {why}"


# --- the rules --------------------------------------------------------------------------------------------


def _below_sgd(
    method: str, read: Callable[[pandas.DataFrame], pandas.DataFrame], value: str, unit: str
) -> Rule:
    """A method at the release's settings is below SGD in a value that is read off each run."""

    def rule(runs: pandas.DataFrame, where: str) -> Iterator[Finding]:
        runs = _as_released(runs)
        if not {method, "sgd"} <= set(runs["method"]):
            return
        runs = _paired(read(runs), "method", [method, "sgd"])
        table = stats.compare(runs, by="method", baseline="sgd", value=value)
        for _, row in table[table["method"] == method].iterrows():
            yield _finding(f"{NAMES[method]} minus SGD, {where}", row, unit, supports=row["difference"] < 0)

    return rule


def _clipping(runs: pandas.DataFrame, where: str) -> Iterator[Finding]:
    """Runs without a threshold are worse than those at 0.1, at each rate."""
    for label, row in _ablated(runs, "grad_clip", 0.1, math.inf):
        where_and_what = f"{label} without clipping minus ν = 0.1, {where}"
        yield _finding(where_and_what, row, "points", supports=row["difference"] > 0)


def _orthogonality(runs: pandas.DataFrame, where: str) -> Iterator[Finding]:
    """Runs at alpha 0.1 are better than those at 0."""
    for label, row in _ablated(runs, "alpha", 0.0, 0.1):
        where_and_what = f"{label}, α = 0.1 minus α = 0, {where}"
        yield _finding(where_and_what, row, "points", supports=row["difference"] < 0)


def _ablated(runs: pandas.DataFrame, by: str, baseline: float, tested: float) -> Iterator[tuple[str, Any]]:
    """Two values of a field in runs that are alike otherwise, corrected for all values that were run."""
    runs = _test_error(runs[runs["method"].isin(["sgd-g", "adam-g"])])
    alike = [name for name in _OF_METHOD if name != by]
    runs = runs.assign(curve=[" ".join(map(str, row)) for row in runs[alike].itertuples(index=False)])
    both = runs.groupby("curve")[by].agg(lambda values: {baseline, tested} <= set(values))
    runs = runs[runs["curve"].isin(both.index[both.astype(bool)])]
    if runs.empty:
        return
    runs = _paired(runs, by, [baseline, tested], within="curve")
    table = stats.compare(runs, by=by, baseline=baseline, within="curve")
    for _, row in table[table[by] == tested].iterrows():
        first = runs[runs["curve"] == row["curve"]].iloc[0]
        yield f"{NAMES[first['method']]} at rate {first['lr']:g}", row


def _plateaus(runs: pandas.DataFrame, where: str) -> Iterator[Finding]:
    """Where the test loss rises within a stage under SGD, it rises less under SGD-G or Adam-G."""
    runs = _as_released(runs)
    drops = [int(epoch) for epoch in str(runs["drops"].iloc[0]).split()] if len(runs) else []
    if "sgd" not in set(runs["method"]) or runs["method"].nunique() < 2 or not drops:
        return
    _all_finished(runs)
    runs = runs.assign(stage=sum((runs["epoch"] > drop).astype(int) for drop in drops))
    stages = runs[runs["stage"] > 0].groupby(["digest", "stage"])
    runs = runs.assign(change=runs["test_loss"] - stages["test_loss"].transform("first"))
    ends = runs[runs["stage"] > 0].groupby(["digest", "stage"]).tail(1)
    ends = _paired(ends, "method", sorted({"sgd", "sgd-g", "adam-g"} & set(ends["method"])), within="stage")
    own = stats.summarize(ends, by=["stage", "method"], value="change", statistic="mean")
    if not (own.loc[own["method"] == "sgd", "low"] > 0).any():
        raise _Untested("the rise that should go away is not seen under SGD")
    table = stats.compare(ends, by="method", baseline="sgd", within="stage", value="change")
    for _, row in table[table["method"].isin(["sgd-g", "adam-g"])].iterrows():
        label = f"{NAMES[row['method']]} minus SGD after drop {row['stage']}, {where}"
        yield _finding(label, row, "in the test loss", supports=row["difference"] < 0)


def _balance(runs: pandas.DataFrame, where: str) -> Iterator[Finding | str]:
    """SGD turns its vectors by the angle of balance, sqrt(2 lr decay / (1 + momentum)), once it is there."""
    runs = runs[(runs["method"] == "sgd") & (runs["weight_decay"] > 0)]
    for lr, alike in runs.groupby("lr"):
        at_rate = f"at rate {lr:g}, {where}"
        try:
            yield _angle(alike, f"angle over prediction, minus 1, {at_rate}")
        except _Untested as why:  # by this rate, and perhaps by another
            yield f"{at_rate}: {why}"


def _angle(runs: pandas.DataFrame, label: str) -> Finding:
    """How far the angle of the first rate is from the one of balance."""
    _all_finished(runs)
    first = _early(runs)
    time = (1 - first["momentum"]) / (4 * first["lr"] * first["weight_decay"])
    held = float((first["step"] / time).min())
    if held < LONG:
        raise _Untested(f"the first rate is held for {held:.2g} T, and the balance takes {LONG:g} T")
    if len(first) < 2:
        raise _Untested("one seed; two are needed")
    predicted = (2 * first["lr"] * first["weight_decay"] / (1 + first["momentum"])) ** 0.5
    found = stats.interval(list(first["angle"] / predicted - 1))
    verdict = UNDECIDED
    if -MARGIN < found.low and found.high < MARGIN:
        verdict = SUPPORTED
    elif found.low > MARGIN or found.high < -MARGIN:
        verdict = CONTRADICTED
    return Finding(label, verdict, found.estimate, found.low, found.high, found.n, "")


# --- what the rules are made of ---------------------------------------------------------------------------


def _test_error(runs: pandas.DataFrame) -> pandas.DataFrame:
    """The last epoch of each run; one that diverged counts as guessing."""
    if runs.empty:
        return runs
    classes = CLASSES.get(runs["dataset"].iloc[0], 10)
    return stats.at_end(runs, diverged={"test_error": 100 * (1 - 1 / classes)})


def _early_loss(runs: pandas.DataFrame) -> pandas.DataFrame:
    _all_finished(runs)
    return _early(runs)


def _early(runs: pandas.DataFrame) -> pandas.DataFrame:
    """The last epoch of each run before the rate first drops."""
    return runs[runs["current_lr"] == runs["lr"]].groupby("digest").tail(1)


def _all_finished(runs: pandas.DataFrame) -> None:
    if (runs["status"] == "diverged").any():
        raise _Untested("a run diverged, and has no loss to compare")


def _as_released(runs: pandas.DataFrame) -> pandas.DataFrame:
    """The runs at the settings that the release chose for their method."""

    def released(run: Any) -> bool:
        settings = method_settings(run["method"], run["dataset"])
        return all(run[name] == value for name, value in settings.items())

    return runs[[released(run) for _, run in runs.iterrows()]]


def _paired(runs: pandas.DataFrame, by: str, needed: list[Any], within: str = "") -> pandas.DataFrame:
    """The runs of the seeds that all needed groups have, of these groups and of others that have them too."""
    keys = [within, by] if within else [by]
    seeds_of = runs.groupby(keys)["seed"].agg(set)
    of_needed = seeds_of[seeds_of.index.get_level_values(by).isin(needed)]
    seeds = set.intersection(*of_needed)
    if len(seeds) < 2:
        raise _Untested(f"{len(seeds)} seed(s) in common; two are needed")
    whole = seeds_of.index[[seeds <= group for group in seeds_of]]
    return runs[runs["seed"].isin(seeds)].set_index(keys, drop=False).loc[whole].reset_index(drop=True)


def _finding(where: str, row: Any, unit: str, *, supports: bool) -> Finding:
    """What a row of `stats.compare` decides: something if it holds after Holm's correction."""
    verdict, note = SUPPORTED if supports else CONTRADICTED, f"p = {row['p_holm']:.2g} after correction"
    if row["low"] <= 0 <= row["high"]:
        verdict = UNDECIDED
    elif row["p_holm"] >= LEVEL:
        verdict, note = UNDECIDED, f"{note}; {verdict} before it"
    return Finding(where, verdict, row["difference"], row["low"], row["high"], int(row["n"]), unit, note)


_CHO, _YI = "Cho and Lee 2017", "Yi 2022"

CLAIMS: dict[str, Claim] = {
    "C1": Claim(
        "SGD-G ends with a lower test error than SGD.",
        f"{_CHO}, abstract",
        _below_sgd("sgd-g", _test_error, "test_error", "points"),
    ),
    "C2": Claim(
        "Adam-G ends with a lower test error than SGD.",
        f"{_CHO}, abstract",
        _below_sgd("adam-g", _test_error, "test_error", "points"),
    ),
    "C3": Claim(
        "SGD-G learns faster than SGD: its training loss is lower before the rate first drops.",
        f'{_CHO}, abstract ("more efficient"; the measure is ours)',
        _below_sgd("sgd-g", _early_loss, "train_loss", "in the training loss"),
    ),
    "C4": Claim(
        "After drops of the rate the plateaus of SGD go away under SGD-G and Adam-G.",
        f"{_CHO} (the wording is ours)",
        _plateaus,
    ),
    "C5": Claim(
        "Clipping at ν = 0.1 ends with a lower test error than no clipping.",
        f"{_CHO}, abstract: clipping is effective (the form tested is ours)",
        _clipping,
    ),
    "C6": Claim(
        "The orthogonality regularizer at α = 0.1 ends with a lower test error than none.",
        f"{_CHO}, abstract: regularization is effective (the form tested is ours)",
        _orthogonality,
    ),
    "C7": Claim(
        "Networks that compute the same, with weights of other lengths, part under SGD.",
        "derived in chapter 01 (the wording is ours)",
        elsewhere="chapter 01 shows it; ci/tests/test_optim.py tests its laws",
    ),
    "C8": Claim(
        "Weight decay of a weight without length sets the angle by which SGD turns it.",
        "known from work on normalized weights",
        _balance,
    ),
    "S1": Claim(
        "A normalized weight vector is a point of a sphere: positive rescaling, and no other, keeps the loss.",
        _CHO,
        elsewhere="chapter 02 shows it; ci/tests/test_split.py tests it",
    ),
    "S2": Claim(
        "Geodesic step and parallel transport keep the length of a point and of a momentum.",
        _CHO,
        elsewhere="chapters 02 and 04 show it; ci/tests/test_geometry.py tests it",
    ),
    "P1": Claim(
        "From equivalent weights PSI-SGD takes equivalent steps, and ends at equivalent weights.",
        f"{_YI}, abstract",
        elsewhere="chapter 06 shows it; ci/tests/test_optim.py tests it",
    ),
    "P2": Claim(
        "PSI-SGD learns faster than SGD: its training loss is lower before the rate first drops.",
        f"{_YI}, abstract (the measure is ours)",
        _below_sgd("psi-sgd", _early_loss, "train_loss", "in the training loss"),
    ),
    "P3": Claim(
        "PSI-SGD ends with a lower test error than SGD.",
        f"{_YI}, abstract",
        _below_sgd("psi-sgd", _test_error, "test_error", "points"),
    ),
}
"""The claims that the book asks about, in the order of its ledger."""
