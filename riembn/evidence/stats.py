"""What do a few seeds allow to say about a difference?

Intervals have 95 % confidence unless told otherwise. With fewer than ten values they are Student's t
intervals of the mean: with three to eight seeds a bootstrap interval that says 95 % covers 76 to 90 % of
normal errors (`ci/tests/test_stats.py` measures it at three), because so few values cannot be resampled into
what was not seen. From ten values on they are percentile bootstrap intervals, seeded. Where a seed is missing
nothing is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas

__all__ = ["Interval", "at_end", "compare", "holm", "interval", "summarize"]

FEWEST_RESAMPLED = 10
RESAMPLES = 9999
ROUNDING = 1e-6  # of a difference, relative to the values: records keep seven digits of each


@dataclass(frozen=True)
class Interval:
    """An estimate from ``n`` values and the interval around it; ``kind`` is ``t`` or ``bootstrap``."""

    estimate: float
    low: float
    high: float
    n: int
    kind: str


def interval(
    values: Sequence[float],
    *,
    statistic: Literal["mean", "median"] = "mean",
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The mean or median of some values, with its interval.

    Args:
        values: At least two finite numbers, one a seed.
        statistic: What is estimated. Of fewer than ten values the interval is that of the mean either way,
            which is the median's too if errors are symmetric.
        confidence: Between 0 and 1.
        seed: Of the bootstrap.

    Raises:
        ValueError: If there are fewer than two values, or one is not finite.
    """
    import numpy
    from scipy import stats

    sample = numpy.asarray(values, dtype=float)
    if sample.ndim != 1 or len(sample) < 2 or not numpy.isfinite(sample).all():
        raise ValueError(
            f"interval: {list(values)!r} has no spread to go by; give two or more finite numbers."
        )
    if statistic not in ("mean", "median") or not 0 < confidence < 1:
        raise ValueError(
            f"interval: statistic={statistic!r}, confidence={confidence!r}; give mean or median, 0 to 1."
        )
    function: Callable[..., Any] = numpy.mean if statistic == "mean" else numpy.median
    estimate = float(function(sample))
    if len(sample) < FEWEST_RESAMPLED:
        half = (
            stats.t.ppf((1 + confidence) / 2, len(sample) - 1) * sample.std(ddof=1) / math.sqrt(len(sample))
        )
        return Interval(estimate, float(sample.mean() - half), float(sample.mean() + half), len(sample), "t")
    found = stats.bootstrap(
        (sample,),
        function,
        confidence_level=confidence,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=numpy.random.default_rng(seed),
    ).confidence_interval
    return Interval(estimate, float(found.low), float(found.high), len(sample), "bootstrap")


def at_end(frame: pandas.DataFrame, *, diverged: dict[str, float] | None = None) -> pandas.DataFrame:
    """The last epoch of each run.

    Args:
        frame: Tidy records, as `riembn.sweep` and `Store.frame` give them.
        diverged: Values that a diverged run has at its end, e.g. ``{"test_error": 90.0}``: without them,
            a run that did not finish is an error.

    Raises:
        ValueError: If a run diverged and no values are given for that, or there are no runs.
    """
    if frame.empty:
        raise ValueError("at_end: the frame has no runs; sweep first.")
    last = frame.loc[frame.groupby("digest")["epoch"].idxmax()].copy()
    lost = last["status"] == "diverged"
    if lost.any() and diverged is None:
        raise ValueError(
            f"at_end: {int(lost.sum())} run(s) diverged, e.g. {last.loc[lost, 'digest'].iloc[0]}; leave "
            'them out knowingly, or say what they count as: diverged={"test_error": 90.0}.'
        )
    for name, value in (diverged or {}).items():
        last.loc[lost, name] = value
    return last.sort_index()


def summarize(
    frame: pandas.DataFrame,
    *,
    by: str | Sequence[str],
    value: str = "test_error",
    statistic: Literal["mean", "median"] = "median",
    seeds: Sequence[int] | None = None,
    confidence: float = 0.95,
) -> pandas.DataFrame:
    """Mean, median and interval over the seeds of each group of runs.

    Args:
        frame: One row a run, as `at_end` gives, or of one epoch.
        by: Fields that tell the groups apart; within a group, runs may differ in nothing but the seed.
        value: The column to summarize.
        statistic: What the interval is for.
        seeds: The seeds every group must have; None: those that any group has.
        confidence: Of the interval.

    Returns:
        One row a group: ``by``, ``n``, ``mean``, ``median``, ``low``, ``high``, ``interval`` (its kind).

    Raises:
        ValueError: If a group lacks a seed, or has one twice.
    """
    import pandas

    rows = []
    for group, values in _by_seed(frame, _listed(by), value, seeds, "summarize").items():
        found = interval(list(values), statistic=statistic, confidence=confidence)
        rows.append(
            {
                **dict(zip(_listed(by), group, strict=True)),
                "n": found.n,
                "mean": values.mean(),
                "median": values.median(),
                "low": found.low,
                "high": found.high,
                "interval": found.kind,
            }
        )
    return pandas.DataFrame(rows)


def compare(
    frame: pandas.DataFrame,
    *,
    by: str,
    baseline: Any,
    within: str | Sequence[str] = (),
    value: str = "test_error",
    seeds: Sequence[int] | None = None,
    confidence: float = 0.95,
) -> pandas.DataFrame:
    """Each method against a baseline, seed by seed: equal seeds share initial weights and order of the data.

    Args:
        frame: One row a run, as `at_end` gives, or of one epoch.
        by: The field whose values are compared, e.g. ``method``.
        baseline: Its value that the others are compared with.
        within: Fields whose combinations are compared apart, e.g. ``["network", "dataset"]``.
        value: The column to compare; less is better.
        seeds: The seeds every group must have; None: those that any group has.
        confidence: Of the intervals.

    Returns:
        One row a comparison: ``within``, ``by``, ``n``; ``difference`` (mean over seeds, minus the baseline),
        ``low``, ``high``, ``interval``; ``improved``, the share of seeds that were better (a tie counts
        half), with Clopper and Pearson's ``improved_low`` and ``improved_high``; ``p`` of the paired t test,
        and ``p_holm``, corrected for all rows of this table. Differences that are equal to rounding do not say
        how far they spread: their interval is infinite, and their p is 1.

    Raises:
        ValueError: If a group lacks a seed or has one twice, or the baseline is missing.
    """
    import pandas
    from scipy import stats

    fields = [*_listed(within), by]
    groups = _by_seed(frame, fields, value, seeds, "compare")
    rows = []
    for group, values in groups.items():
        if group[-1] == baseline:
            continue
        cell = dict(zip(fields, group, strict=True))
        if (*group[:-1], baseline) not in groups:
            raise ValueError(
                f"compare: no runs of the baseline {by}={baseline!r} for {cell}; sweep them first."
            )
        reference = groups[(*group[:-1], baseline)]
        difference = values - reference
        found = interval(list(difference), confidence=confidence)
        better = float((difference < 0).sum() + 0.5 * (difference == 0).sum())
        # A tie counts half; rounding the count down and up keeps the interval on the cautious side.
        low = stats.binomtest(math.floor(better), found.n).proportion_ci(confidence).low
        high = stats.binomtest(math.ceil(better), found.n).proportion_ci(confidence).high
        spread = difference.std(ddof=1) > ROUNDING * max(values.abs().max(), reference.abs().max())
        rows.append(
            {
                **cell,
                "n": found.n,
                "difference": found.estimate,
                "low": found.low if spread else -math.inf,
                "high": found.high if spread else math.inf,
                "interval": found.kind,
                "improved": better / found.n,
                "improved_low": float(low),
                "improved_high": float(high),
                "p": float(stats.ttest_1samp(difference, 0.0).pvalue) if spread else 1.0,
            }
        )
    if not rows:
        raise ValueError(f"compare: nothing to compare with {by}={baseline!r}; {by} has no other value.")
    table = pandas.DataFrame(rows)
    return table.assign(p_holm=holm(list(table["p"])))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number, so that all of a table's claims hold together.

    The k-th smallest of m is multiplied by m - k + 1, none falls below a smaller one's, and 1 is the most.

    Source: S. Holm (1979), "A simple sequentially rejective multiple test procedure".
    """
    if any(not 0 <= p <= 1 for p in p_values):
        raise ValueError(f"holm: {list(p_values)!r} are not all p-values; give numbers from 0 to 1.")
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, p_values[place] * (len(p_values) - rank)))
        corrected[place] = largest
    return corrected


def _by_seed(
    frame: pandas.DataFrame, by: list[str], value: str, seeds: Sequence[int] | None, caller: str
) -> dict[tuple[Any, ...], pandas.Series]:
    """The values of each group, indexed and sorted by seed; refused unless each has each seed once."""
    unknown = [name for name in [*by, value, "seed"] if name not in frame.columns]
    if unknown:
        raise ValueError(
            f"{caller}: no column {', '.join(unknown)}; the frame has {', '.join(frame.columns)}."
        )
    wanted = sorted(set(frame["seed"]) if seeds is None else set(seeds))
    groups: dict[tuple[Any, ...], pandas.Series] = {}
    for key, runs in frame.groupby(by, dropna=False, sort=False):
        group = key if isinstance(key, tuple) else (key,)
        label = ", ".join(f"{name}={part}" for name, part in zip(by, group, strict=True))
        if runs["seed"].duplicated().any():
            twice = int(runs.loc[runs["seed"].duplicated(), "seed"].iloc[0])
            raise ValueError(
                f"{caller}: {label} has several runs of seed {twice}; take one epoch of each (at_end), "
                "and name every field in which they differ."
            )
        missing = [seed for seed in wanted if seed not in set(runs["seed"])]
        if missing:
            raise ValueError(
                f"{caller}: {label} has no run of seed {', '.join(map(str, missing))}; sweep it first."
            )
        values = runs.set_index("seed")[value].loc[wanted].astype(float)
        if values.isna().any():
            raise ValueError(f"{caller}: {label} has no {value} for seed {values.index[values.isna()][0]}.")
        groups[group] = values
    return groups


def _listed(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)
