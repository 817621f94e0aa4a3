"""A study on a page: its design, its figure, its comparisons, and its verdict in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from riembn.evidence import Study, stats
from riembn.evidence.designs import core_hours
from riembn.evidence.readings import Untested
from riembn.experiment.presets import method_settings
from riembn.experiment.store import Store
from riembn.pages.draw import dots, figure, legend
from riembn.pages.names import FIELDS, MEASURES, axis_text, field_text, setting_text, value_text
from riembn.pages.page import show, table, typeset
from riembn.pages.palette import look
from riembn.pages.tuning import tuning

GUESSING = {"test_error": 90.0, "train_error": 90.0, "early_error": 90.0}
"""What a run that diverged counts as."""


def design(study: Study, frame: pd.DataFrame) -> None:
    """A table of what was run: values, seeds, runs, hours that they trained, one core each or their part of a GPU."""
    rows = []
    for method, runs in frame.groupby("method", sort=False):
        row: dict[str, Any] = {"method": look(str(method)).label}
        for name in study.vary:
            row[FIELDS.get(name, name)] = ", ".join(dict.fromkeys(map(value_text, runs[name])))
        row["rates"] = ", ".join(f"{rate:g}" for rate in sorted(set(runs["lr"])))
        row["seeds"] = runs["seed"].nunique()
        row["runs"] = runs["digest"].nunique()
        row["hours, all runs"] = runs["seconds"].sum() / 3600
        rows.append(row)
    one = study.base
    images = f"{one.train_size:,} images of {one.dataset}" if one.train_size else one.dataset
    how = f"rates tuned on {study.holdout:,} held-out images" if study.tuning() else rates_text(study)
    table(
        pd.DataFrame(rows),
        caption=f"What was run: {one.network} × {one.width:g}, {images}, {one.epochs} epochs, {how}.",
        formats={"hours, all runs": "{:.2f}"},
        runs=frame["digest"],
    )


def ablation(
    study: Study,
    frame: pd.DataFrame,
    values: Sequence[str] = ("test_error",),
    *,
    name: str | None = None,
    caption: str | None = None,
    ends: pd.DataFrame | None = None,
    labels: Mapping[str, str] | None = None,
) -> None:
    """The figure of a study: each value against what varies, a panel a value, a color a method.

    Where several fields vary, each combination has its place; those that are compared stand side by side.

    Args:
        study: What was asked.
        frame: What ``study.run`` returned.
        values: Columns to show.
        name: Anchor of the figure; otherwise that of the first varied field.
        caption: Otherwise one drawn from the study.
        ends: One row a run with the values; otherwise the last epoch of each.
        labels: Names of columns that are not a record's.
    """
    ends = study.ends(frame) if ends is None else ends
    labels = {**MEASURES, **(labels or {})}
    varied = sorted(study.vary, key=lambda field: field == study.by) or ["method"]
    for field in varied:
        if ends[field].isna().any():  # no number; NaN has no place on an axis
            ends = ends.assign(**{field: ends[field].astype(object).fillna("none")})
    methods = list(dict.fromkeys(ends["method"]))
    order = list(dict.fromkeys(_combinations(ends, varied)))
    if study.vary:
        order.sort(key=lambda values: [(isinstance(v, str), v) for v in values])
    fig, axes = figure(1, len(values), height=3.6)
    for ax, value in zip(np.ravel(axes), values, strict=True):
        for place, method in enumerate(methods):
            runs = ends[ends["method"] == method]
            found = stats.summarize(runs, by=varied, value=value)
            shift = 0.16 * (place - (len(methods) - 1) / 2) if study.vary else 0
            cells, of_run = _combinations(found, varied), _combinations(runs, varied)
            x = [order.index(cell) + shift for cell in cells]
            each = [[v for v, own in zip(runs[value], of_run, strict=True) if own == cell] for cell in cells]
            dots(ax, x, found["mean"], found["low"], found["high"], method, runs=each, index=place)
        ticks = ["\n".join(map(value_text, cell)) if study.vary else look(cell[0]).label for cell in order]
        ax.set(xticks=range(len(order)), xticklabels=ticks, title=labels.get(value, value))
        ax.set(xlabel="\n".join(map(axis_text, varied)))
    if study.vary:
        legend(np.ravel(axes)[0])
    shown = " and ".join(labels.get(value, value).partition(",")[0] for value in values)
    shown, n = f"{shown} by {' and '.join(FIELDS.get(field, field) for field in varied)}", len(study.seeds)
    show(
        fig,
        name=name or next(iter(study.vary), "method"),
        caption=caption
        or f"{shown[0].upper()}{shown[1:]}. Filled: mean over {n} seeds, 95 % interval. Open: single runs. The table "
        "of comparisons is about differences, seed by seed.",
        alt=f"{shown[0].upper()}{shown[1:]}, for {', '.join(look(m).label for m in methods)}. "
        "The table of comparisons has the numbers.",
        runs=ends["digest"],
    )


def _combinations(runs: pd.DataFrame, fields: Sequence[str]) -> list[tuple[Any, ...]]:
    """The values of some fields, row by row."""
    return list(zip(*(runs[field] for field in fields), strict=True))


def _subtracted(study: Study) -> str:
    """How a caption about differences begins; symbols and names of methods stay as they are."""
    text = baseline_text(study)
    return f"{f'No {text[3:]}' if text.startswith('no ') else text} subtracted, seed by seed"


def comparisons(found: pd.DataFrame, study: Study, *, unit: str = "points") -> None:
    """The table of comparisons that a verdict is drawn from, as `Study.compare` gives it."""
    found = found.reset_index(drop=True)  # in whichever order it was put
    shown = _cells(found)
    shown["n"] = found["n"]
    shown[f"difference, {unit}"] = [
        stats.spelled(*row) for row in found[["difference", "low", "high"]].itertuples(index=False)
    ]
    shown["p, Holm"] = found["p_holm"]
    shown["detectable"] = found["detectable"]
    shown["verdict"] = found["verdict"]
    table(
        shown,
        caption=f"{_subtracted(study)}: mean difference with its 95 % interval; p-value "
        "after Holm's correction; smallest true difference that 80 % of such designs find.",
        formats={"p, Holm": "{:.2g}", "detectable": "{:.2g}"},
        runs=found.attrs.get("runs", ()),
    )


def _cells(found: pd.DataFrame) -> pd.DataFrame:
    """The columns of a table of comparisons that say what is compared, as a reader knows them."""
    fields = found.columns[: list(found.columns).index("n")]
    return pd.DataFrame({FIELDS.get(c, c): [field_text(c, v) for v in found[c]] for c in fields})


def differences(
    study: Study,
    frame: pd.DataFrame,
    values: Sequence[str],
    *,
    ends: pd.DataFrame | None = None,
    name: str | None = None,
) -> None:
    """A table of several values at once, a column each: what each cell differs by from the baseline, and how surely.

    Args:
        study: What was asked.
        frame: What ``study.run`` returned.
        values: Columns to compare; each is corrected for itself, over all its comparisons.
        ends: One row a run with the values; otherwise what `Study.ends` gives.
        name: Of the file with its numbers.
    """
    found = {value: study.compare(frame, value, ends=ends) for value in values}
    first = next(iter(found.values()))
    shown = _cells(first)
    for value, one in found.items():
        shown[MEASURES.get(value, value)] = [
            f"{stats.spelled(r['difference'], r['low'], r['high'])} {r['verdict']}"
            for _, r in one.iterrows()
        ]
    table(
        shown,
        caption=f"{_subtracted(study)}: mean difference, 95 % interval, verdict after "
        f"Holm's correction for the {len(first)} comparisons of a column.",
        name=name,
        runs=frame["digest"],
    )


def baseline_text(study: Study) -> str:
    """The baseline of a study as a reader knows it."""
    return setting_text(study.by, study.baseline.get(study.by, getattr(study.base, study.by)))


def rates_text(study: Study) -> str:
    """How the rates of a study were chosen, as a reader knows it."""
    if study.tuning():
        return "tuned alike on held-out images"
    configs = study.configs()
    preset = all(one.lr == method_settings(one.method, one.dataset)["lr"] for one in configs)
    usual = all(one.weight_decay in (0, 5e-4) for one in configs)  # the source's rates belong to these
    return "at preset rates" if preset and usual else "at given rates"


def awaited(study: Study, store: Store | str | Path, block: str) -> bool:
    """Say on the page how many of a study's runs have no record yet, what they cost, and which command makes them.

    Returns:
        Whether any is missing; if none is, nothing is said.
    """
    if left := study.remaining(store):
        total = len(study.tuning()) + len(study.cells) * len(study.seeds)
        sentence = (
            f"**Not run yet:** {len(left)} of {total} runs of block {block} are missing, about {core_hours(left):.1f} "
            f"core-hours; `python -m riembn design {block} --store book/records` makes them, and this page shows them."
        )
        _say(sentence)
    return bool(left)


def _say(text: str) -> None:
    from IPython.display import Markdown, display

    display(Markdown(text))


def outcome(
    study: Study,
    store: Store | str | Path,
    values: Sequence[str] = ("test_error",),
    *,
    block: str,
    name: str,
    claimed: str | None = "better",
    what: str = "test error",
    unit: str = "points",
    read: Callable[[pd.DataFrame], pd.DataFrame] | None = None,
    figure: Mapping[str, Any] | None = None,
    **options: Any,
) -> pd.DataFrame | None:
    """A whole result on the page: design, tuning, figure, comparisons of the first value, verdict; nothing is trained.

    Where runs are missing the page says so in a sentence, with their number, their cost, and the command for them.
    A run that diverged counts with the error of guessing among ten classes, as in the ledger; it has no loss and no
    angle, and the page says so where one of them was to be compared or shown.

    Args:
        study: One of the book's, from `riembn.evidence.designs`.
        store: Where records are kept.
        values: Columns to show; the first is the one that is compared.
        block: The letter of its block.
        name: Anchor of the figure.
        claimed: As for `verdict`; None where nothing is claimed and no verdict is wanted.
        what: As for `verdict`.
        unit: As for `verdict`.
        read: Gives one row a run with the values; otherwise `Study.ends`.
        figure: Further options of `ablation`.
        options: As for `riembn.evidence.stats.compare`: ``asked``, ``less_is_better``, ``margin``.

    Returns:
        What `Study.compare` gives, or None where runs are missing or what is compared cannot be read off them.
    """
    if awaited(study, store, block):
        return None
    frame = study.frame(store)
    try:
        ends = read(frame) if read else study.ends(frame, GUESSING)
    except Untested as why:
        _say(f"**Nothing to compare:** {why}.")
        return None
    absent = [value for value in values if ends[value].isna().any()]
    if absent:
        labels = {**MEASURES, **(figure or {}).get("labels", {})}
        names = " and ".join(labels.get(value, value).partition(",")[0] for value in absent)
        _say(f"**Not compared or shown:** {names}, which not every run has.")
    if values[0] in absent:
        return None
    values = [value for value in values if value not in absent]
    found = study.compare(frame, values[0], ends=ends, **options)
    design(study, frame)
    if study.tuning():
        tuning(study, store)
    ablation(study, frame, values, name=name, ends=ends, **(figure or {}))
    comparisons(found, study, unit=unit)
    if claimed:
        verdict(found, study, claimed=claimed, what=what, unit=unit)
    return found


def verdict(
    found: pd.DataFrame, study: Study, *, claimed: str = "better", what: str = "test error", unit: str = "points"
) -> str:
    """Put the verdict on the page in words, drawn from the table of comparisons; returns it.

    Args:
        found: What `Study.compare` returned.
        study: Its study.
        claimed: What the claim says of the cells that are compared with the baseline: better, worse, equivalent.
        what: What was compared.
        unit: Its unit.
    """
    said = stats.decide(found["verdict"], claimed)
    asked = found[found["verdict"] != "not asked"]
    fields = list(found.columns[: list(found.columns).index("n")])
    than = "to" if claimed.startswith("equivalent") else "than" if study.by == "method" else "than with"
    which = "each" if len(asked) > 1 else "it"
    claim = f"The claim is that {which} is {claimed} in {what} {than} {baseline_text(study)}."
    lines = [f"**Verdict, {rates_text(study)}: {said}.** {claim}", ""]
    corrected = f" after Holm's correction for {len(asked)}" if len(asked) > 1 else ""
    for _, row in asked.iterrows():
        lines.append(
            f"- {', '.join(setting_text(field, row[field]) for field in fields)}: "
            f"{stats.spelled(row['difference'], row['low'], row['high'], unit)}, n = {row['n']}, "
            f"p = {row['p_holm']:.2g}{corrected}: "
            f"{row['verdict']}. This design finds a true difference of {row['detectable']:.2g} in 80 % of cases."
        )
    lines.append(
        "\nIntervals are over seeds (initial weights, order, augmentation); the images are the same in every run."
    )
    if study.looks > 1:
        lines.append(f"Seeds or tries were added after a look, so p-values are multiplied by {study.looks}.")
    _say(typeset("\n".join(lines)))
    return said
