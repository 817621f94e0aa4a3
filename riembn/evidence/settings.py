"""Which runs are alike but for the method, and how their settings were chosen: all of it read off the records.

A run is *tuned* if it has the best settings of a grid that was run on other seeds (`TUNING_SEEDS`) and judged on images
held out of the training set; where the rate never drops, by the training loss that the grid had reached after as many
epochs, which is what such runs are for. It is *preset* if it has the settings of its method's source.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..experiment.config import FIELDS
from ..experiment.presets import method_settings

if TYPE_CHECKING:
    import pandas

__all__ = ["NAMES", "OF_METHOD", "TUNED_FIELDS", "TUNING_SEEDS", "cells", "curves", "prepare"]

NAMES = {"sgd": "SGD", "sgd-g": "SGD-G", "adam-g": "Adam-G", "psi-sgd": "PSI-SGD"}
TUNING_SEEDS = (100, 101)

# What a grid may be over; runs that are alike in all else, with decay or without, are one grid.
TUNED_FIELDS = ("lr", "rest_lr", "weight_decay", "momentum", "rest_momentum")
# Fields of experiments on what a method rests on, and the values of runs that are none.
_CONTROLS = {"lengths": "free", "decay_on": "all", "row_scale": 0, "start_noise": 0.0}
# What a method brings with it; all other fields but the seed make the cell in which methods are compared.
OF_METHOD = (
    "method", *TUNED_FIELDS, "rule", "grad_clip", "alpha", "beta2", "nesterov", "options",
    "rest", "rest_options", *_CONTROLS,
)  # fmt: skip
_OF_RUN = ("seed", "evaluate_at")  # what leaves a run's settings as they are
_CELL = [*(name for name in FIELDS if name not in (*OF_METHOD, *_OF_RUN)), "decays"]
_GRID = [*(name for name in FIELDS if name not in (*TUNED_FIELDS, *_OF_RUN, "holdout")), "decays"]
_SCHEDULE = ("epochs", "drops", "drop_factor")
_NAMED = ["network", "width", "dataset", "train_size", "epochs"]
# Fields and columns that frames of older records lack, and what they would hold.
_LATER: dict[str, Any] = {
    "holdout": 0, "nesterov": True, "schedule": "steps", **_CONTROLS,
    "angle_rms": math.nan, "clean_loss": math.nan, "validation_error": math.nan,
}  # fmt: skip
_DECAYS = (0.0, 5e-4)
_PSI = {(1.0, 0.0), (0.1, 0.9)}  # rate and momentum of Yi (2022), section 6.2 and supplement, table 3
_OWN_PSI = (0.05, 0.9)  # this project's, from before those were known


def prepare(frame: pandas.DataFrame) -> pandas.DataFrame:
    """The runs that can speak for or against a claim, one row a run and epoch, with what is known of their settings.

    Runs of methods that no claim is about are left out, and so are those that tuned. Added are ``decays`` (whether
    there is weight decay), ``constant`` (whether the rate never changes), ``plain`` (no experiment on what a method
    rests on), ``curve`` (equal where runs differ in the seed alone), ``tries`` (how many settings the run's own were
    the best of; 0 if it is not tuned), ``at_edge`` (of that grid), ``preset`` (by the method's source) and ``own`` (at
    rates that this project once chose).
    """
    if frame.empty:
        return frame
    frame = frame[frame["method"].isin(NAMES)].reset_index(drop=True)
    frame = frame.assign(**{name: _with_default(frame, name, value) for name, value in _LATER.items()})
    frame = frame.assign(
        decays=frame["weight_decay"] > 0,
        constant=(frame["drops"] == "") & (frame["schedule"] == "steps"),
        plain=(frame[list(_CONTROLS)] == list(_CONTROLS.values())).all(axis=1),
    )
    frame = frame.assign(
        curve=_spelled(frame, [*_CELL, *OF_METHOD]),
        settings=_spelled(frame, TUNED_FIELDS),
        grid=_spelled(frame, _GRID),
    )
    tuning = frame["seed"].isin(TUNING_SEEDS)
    tuned = _tuned(frame[tuning & (frame["holdout"] > 0)], frame[~tuning])
    runs = frame[~tuning]
    chosen = {curve: _chosen_by(run) for curve, run in _one_each(runs)}
    return runs.assign(
        tries=[tuned.get(curve, _UNTUNED).tries for curve in runs["curve"]],
        at_edge=[tuned.get(curve, _UNTUNED).at_edge for curve in runs["curve"]],
        preset=[chosen[curve] == "source" for curve in runs["curve"]],
        own=[chosen[curve] == "project" for curve in runs["curve"]],
    )


def cells(runs: pandas.DataFrame) -> Iterator[tuple[str, pandas.DataFrame]]:
    """The runs that are alike but for the method and its settings, and what to call them."""
    runs = runs.assign(cell=_spelled(runs, _CELL))
    for _, named in runs.groupby(_NAMED, dropna=False, sort=False):
        one: Any = named.iloc[0]
        size = f" ({int(one['train_size']):,} images)" if one["train_size"] == one["train_size"] else ""
        name = f"{one['network']} × {one['width']:g} on {one['dataset']}{size}, {one['epochs']} epochs"
        apart = [field for field in _CELL if field in named and _spelled(named, [field]).nunique() > 1]
        for _, alike in named.groupby("cell", sort=False):
            yield ", ".join([name, *(f"{field}={alike[field].iloc[0]}" for field in apart)]), alike


def curves(runs: pandas.DataFrame, method: str) -> list[pandas.DataFrame]:
    """The runs of a method, apart by their settings, without experiments on what it rests on."""
    chosen = runs[(runs["method"] == method) & runs["plain"]]
    return [curve for _, curve in chosen.groupby("curve", sort=False)]


class _Best(NamedTuple):
    """The best settings of a grid, of how many, and whether their rate is its first or last."""

    settings: str
    tries: int
    at_edge: bool


_UNTUNED = _Best("", 0, False)


def _tuned(tuning: pandas.DataFrame, confirming: pandas.DataFrame) -> dict[str, _Best]:
    """The curves that have the best settings of their grid."""
    found: dict[str, _Best] = {}
    ends = tuning.groupby("digest").tail(1)
    ends = ends.assign(score=ends["validation_error"].where(ends["status"] == "finished"))
    found |= _matching(confirming[~confirming["constant"]], _best(ends))
    shared = [name for name in _GRID if name not in _SCHEDULE]
    for epochs, runs in confirming[confirming["constant"]].groupby("epochs"):
        reached = tuning[(tuning["epoch"] == epochs) & (tuning["current_lr"] == tuning["lr"])]
        best = _best(reached.assign(score=reached["clean_loss"], grid=_spelled(reached, shared)))
        found |= _matching(runs.assign(grid=_spelled(runs, shared)), best)
    return found


def _matching(runs: pandas.DataFrame, best: dict[str, _Best]) -> dict[str, _Best]:
    """The curves whose settings are the best of their grid."""
    of_curve = {curve: (run["settings"], best.get(run["grid"], _UNTUNED)) for curve, run in _one_each(runs)}
    return {curve: grid for curve, (settings, grid) in of_curve.items() if grid.settings == settings}


def _best(tries: pandas.DataFrame) -> dict[str, _Best]:
    """The settings with the lowest mean score in each grid.

    A setting counts once both tuning seeds are there; a run without a score, which diverged, is never the best.
    """
    best = {}
    for grid, alike in tries.groupby("grid"):
        whole = [s for _, s in alike.groupby("settings") if set(s["seed"]) == set(TUNING_SEEDS)]
        scores = {s["settings"].iloc[0]: s["score"].astype(float).mean(skipna=False) for s in whole}
        scores = {settings: score for settings, score in scores.items() if score == score}
        if len(whole) > 1 and scores:
            chosen = min(scores, key=scores.__getitem__)
            rates = sorted({s["lr"].iloc[0] for s in whole})
            rate = alike.loc[alike["settings"] == chosen, "lr"].iloc[0]
            best[str(grid)] = _Best(chosen, len(whole), len(rates) > 1 and rate in (rates[0], rates[-1]))
    return best


def _with_default(frame: pandas.DataFrame, name: str, default: Any) -> list[Any]:
    """A column, with a default where a row or all of the frame lacks it."""
    if name not in frame.columns:
        return [default] * len(frame)
    return [default if value is None or value != value else value for value in frame[name]]


def _one_each(runs: pandas.DataFrame) -> Iterator[tuple[str, Any]]:
    for _, run in runs.drop_duplicates("curve").iterrows():
        yield run["curve"], run


def _chosen_by(run: Any) -> str:
    """Who chose the settings of a run: the source of its method, this project, or nobody that is known."""
    if run["weight_decay"] not in _DECAYS or not run["nesterov"] or not run["plain"]:
        return ""
    if run["method"] == "psi-sgd":
        chosen = run["lr"], run["momentum"]
        return "source" if chosen in _PSI else "project" if chosen == _OWN_PSI else ""
    settings = method_settings(run["method"], run["dataset"])
    acting = {name: value for name, value in settings.items() if (run["method"], name) != ("sgd", "rule")}
    return "source" if all(run[name] == value for name, value in acting.items()) else ""


def _spelled(frame: pandas.DataFrame, names: Sequence[str]) -> pandas.Series:
    """The values of some fields of each row as one text: equal exactly if all are; nothing and NaN are one."""
    import pandas

    present = [name for name in names if name in frame.columns]
    rows = frame[present].itertuples(index=False, name=None)
    spelled = ["|".join("" if v is None or v != v else str(v) for v in row) for row in rows]
    return pandas.Series(spelled, index=frame.index, dtype=str)
