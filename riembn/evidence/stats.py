"""Tables over seeds: means, comparisons, and what a few seeds allow to say about a difference.

Intervals have 95 % confidence, each for itself, and are Student's. Where a seed is
missing nothing is computed. What varies within an interval is the seed alone: initial weights, order of the images,
augmentation. The images are the same in every run, so nothing is said of other training sets.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas

from .intervals import Difference, difference
from .intervals import holm as holm
from .intervals import interval as interval
from .intervals import smallest_detectable as smallest_detectable
from .intervals import spelled as spelled
from .verdicts import NOT_ASKED, Question, settle
from .verdicts import decide as decide


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
    seeds: Sequence[int] | None = None,
) -> pandas.DataFrame:
    """Mean, median and the mean's interval over the seeds of each group of runs.

    Args:
        frame: One row a run, as `at_end` gives, or of one epoch.
        by: Fields that tell the groups apart; within a group, runs may differ in nothing but the seed.
        value: The column to summarize.
        seeds: The seeds every group must have; None: those that any group has.

    Returns:
        One row a group: ``by``, ``n``, ``mean``, ``median``, ``low``, ``high``.

    Raises:
        ValueError: If a group lacks a seed, or has one twice.
    """
    rows = []
    for group, values in _by_seed(frame, _listed(by), value, seeds, "summarize").items():
        found = interval(list(values))
        rows.append(
            {
                **dict(zip(_listed(by), group, strict=True)),
                "n": found.n,
                "mean": values.mean(),
                "median": values.median(),
                "low": found.low,
                "high": found.high,
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
    asked: Mapping[str, Collection[Any]] | None = None,
    less_is_better: bool = True,
    margin: float | None = None,
    looks: int = 1,
) -> pandas.DataFrame:
    """Each group against a baseline, seed by seed: equal seeds share initial weights and order of the data.

    Args:
        frame: One row a run, as `at_end` gives, or of one epoch.
        by: The field whose values are compared, e.g. ``method``.
        baseline: Its value that the others are compared with.
        within: Fields whose combinations are compared apart, e.g. ``["network", "dataset"]``.
        value: The column to compare.
        asked: Which comparisons a claim is about, e.g. ``{"grad_clip": [math.inf]}``: only these are corrected and
            decided. None: all.
        less_is_better: Whether the smaller value is the better one.
        margin: Differences below it do not matter: a comparison that shows so is *equivalent within* it.
        looks: How many times these runs were compared, each time with more seeds or tries; p-values are multiplied
            by it.

    Returns:
        One row a comparison: ``within``, ``by``, ``n``; ``difference`` (mean over seeds, minus the baseline), ``sd``
        (of the paired differences), ``low``, ``high``; ``p`` of the paired t test; ``p_holm``, corrected for all that
        is asked; ``detectable``, the true difference that such a design finds with a probability of 80 %, corrected
        alike; ``verdict``: better, worse, equivalent within the margin, undecided, or not asked (then the two columns
        before it are NaN). Differences that are equal to rounding do not say how far they spread: their interval is
        infinite, and their p is 1. ``attrs["runs"]`` has the digests of the runs, where the frame has them.

    Raises:
        ValueError: If a group lacks a seed or has one twice, or the baseline or what is asked is missing.
    """
    fields, baseline = [*_listed(within), by], _key(baseline)
    groups = _by_seed(frame, fields, value, None, "compare")
    cells: list[dict[str, Any]] = []
    found: list[Difference] = []
    for group, values in groups.items():
        if group[-1:] == (baseline,):  # also where both are NaN
            continue
        cell = dict(zip(fields, group, strict=True))
        if (*group[:-1], baseline) not in groups:
            raise ValueError(
                f"compare: no runs of the baseline {by}={baseline!r} for {cell}; sweep them first."
            )
        cells.append(cell)
        found.append(difference(list(values), list(groups[(*group[:-1], baseline)])))
    if not cells:
        raise ValueError(f"compare: nothing to compare with {by}={baseline!r}; {by} has no other value.")
    table = pandas.DataFrame([{**cell, **dataclasses.asdict(d)} for cell, d in zip(cells, found, strict=True)])
    wanted = (asked or {}).items()
    places = [i for i, cell in enumerate(cells) if all(cell.get(name) in values for name, values in wanted)]
    if not places:
        raise ValueError(f"compare: no comparison is asked by {asked!r}; the fields are {', '.join(fields)}.")
    question = Question("difference", margin, less_is_better, looks)
    settled = settle([found[place] for place in places], [question] * len(places))
    answers = pandas.DataFrame([dataclasses.asdict(one) for one in settled], index=places)
    answers = answers[["p_holm", "detectable", "verdict"]].reindex(table.index)
    table = table.join(answers.fillna({"verdict": NOT_ASKED}))
    table.attrs["runs"] = list(frame.get("digest", ()))
    return table


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
        group = tuple(map(_key, key if isinstance(key, tuple) else (key,)))
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


def _key(value: Any) -> Any:
    """A value to find a group by: NaN, which no other NaN equals, is one and the same."""
    return math.nan if isinstance(value, float) and math.isnan(value) else value


def _listed(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)
