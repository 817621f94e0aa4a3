"""Which runs are alike but for the method, and how their settings were chosen: all of it read off the records.

A run is *tuned* if it has the best settings of a grid that was run on other seeds (`TUNING_SEEDS`) and judged on images
held out of the training set; where the rate never drops, by the training loss that the grid had reached after as many
epochs, which is what such runs are for. It is *preset* if it has the settings of its method's source.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas

from ..experiment.config import FIELDS
from ..experiment.presets import method_settings
from ..methods import methods

NAMES = {"sgd": "SGD", "sgd-g": "SGD-G", "adam-g": "Adam-G", "psi-sgd": "PSI-SGD"}
TUNING_SEEDS = (100, 101)

# What a grid may be over; runs that are alike in all else, with decay or without, are one grid.
TUNED_FIELDS = ("lr", "rest_lr", "weight_decay", "momentum", "rest_momentum")
_SCALES = TUNED_FIELDS[:3]  # which end where a grid ends; a momentum ends at 0 and 1
# Fields of experiments on what a method rests on, and the values of runs that are none.
_CONTROLS = {"lengths": "free", "decay_on": "all", "row_scale": 0, "start_noise": 0.0}
# What a method brings with it; all other fields but the seed make the cell in which methods are compared.
OF_METHOD = (
    "method", *TUNED_FIELDS, "rule", "grad_clip", "alpha", "beta2", "nesterov", "options",
    "rest", "rest_options", *_CONTROLS,
)  # fmt: skip
_OF_RUN = ("seed", "evaluate_at")  # what leaves a run's settings as they are
_CELL = [*(name for name in FIELDS if name not in (*OF_METHOD, *_OF_RUN)), "decays"]
_READ = {"dataset", "epochs", "drops", "schedule", "decays"}  # of these what rules ask; the others only name a cell
_SCHEDULE = ("epochs", "drops", "drop_factor")
_NAMED = ["network", "width", "dataset", "train_size", "epochs"]
_PARTS = {"grad_clip", "alpha", "beta2"}
_DECAYS = (0.0, 5e-4)
_PSI = {(1.0, 0.0), (0.1, 0.9)}  # rate and momentum of Yi (2022), section 6.2 and supplement, table 3
_OWN_PSI = (0.05, 0.9)  # this project's, from before those were known


def prepare(frame: pandas.DataFrame) -> pandas.DataFrame:
    """The runs that can speak for or against a claim, one row a run and epoch, with what is known of their settings.

    Runs of methods that no claim is about are left out, and so are those on held-out images, which choose settings.
    Added are ``decays`` (whether there is weight decay), ``constant`` (whether the rate never changes), ``plain`` (no
    experiment on what a method rests on), ``curve`` (equal where runs differ in the seed alone), ``tries`` (how many
    settings the run's own were the best of; 0 if it is not tuned), ``rate_tries`` (how many rates its own was the best
    of, other settings being the same), ``at_edge`` and ``rate_at_edge`` (whether they have `edges` of these grids),
    ``whole`` (with all that makes the method, as its source has it), ``preset`` (at its source's rates too) and ``own``
    (at rates that this project once chose).
    """
    if frame.empty:
        return frame
    frame = frame[frame["method"].isin(NAMES)].reset_index(drop=True)
    frame = frame.assign(
        decays=frame["weight_decay"] > 0,
        constant=(frame["drops"] == "") & (frame["schedule"] == "steps"),
        plain=(frame[list(_CONTROLS)] == list(_CONTROLS.values())).all(axis=1),
    )
    frame = frame.assign(curve=_spelled(frame, [*_CELL, *OF_METHOD]))
    # Text of pandas' own kind makes each column a block, and every choice of rows copies block by block.
    frame = frame.astype(dict.fromkeys(frame.columns[frame.dtypes == "str"], object)).copy()
    # Two records may be one run, evaluated at other epochs.
    frame = frame[frame["digest"] == frame.groupby(["curve", "seed"])["digest"].transform("first")]
    is_tuning = frame["seed"].isin(TUNING_SEEDS)
    held_out = frame["holdout"] > 0
    tuning, runs = frame[is_tuning & held_out], frame[~is_tuning & ~held_out]
    tuned, rate_tuned = _tuned(tuning, runs, TUNED_FIELDS), _tuned(tuning, runs, ["lr"])
    chosen = {curve: _chosen_by(run) for curve, run in _one_each(runs)}
    return runs.assign(
        tries=[tuned.get(curve, _UNTUNED).tries for curve in runs["curve"]],
        rate_tries=[rate_tuned.get(curve, _UNTUNED).tries for curve in runs["curve"]],
        at_edge=[tuned.get(curve, _UNTUNED).at_edge for curve in runs["curve"]],
        rate_at_edge=[rate_tuned.get(curve, _UNTUNED).at_edge for curve in runs["curve"]],
        whole=[chosen[curve] != "parts" for curve in runs["curve"]],
        preset=[chosen[curve] == "source" for curve in runs["curve"]],
        own=[chosen[curve] == "project" for curve in runs["curve"]],
    )


def cells(runs: pandas.DataFrame) -> Iterator[tuple[str, pandas.DataFrame]]:
    """The runs that are alike but for the method and its settings, and what to call them."""
    runs = runs.assign(cell=_spelled(runs, _CELL))
    named_alone = [name for name in _CELL if name not in _READ]
    for _, named in runs.groupby(_NAMED, dropna=False, sort=False):
        one: Any = named.iloc[0]
        size = f" ({int(one['train_size']):,} images)" if one["train_size"] == one["train_size"] else ""
        name = f"{one['network']} × {one['width']:g} on {one['dataset']}{size}, {one['epochs']} epochs"
        ones = named.drop_duplicates("cell")
        apart = [field for field in _CELL if ones[field].nunique(dropna=False) > 1]
        for _, alike in named.groupby("cell", sort=False):
            said = [_field(field, alike[field].iloc[0]) for field in apart]
            yield ", ".join([name, *said]), alike.drop(columns=named_alone).copy()


def curves(runs: pandas.DataFrame, method: str) -> list[pandas.DataFrame]:
    """The runs of a method, apart by their settings, without experiments on what it rests on."""
    chosen = runs[(runs["method"] == method) & runs["plain"]]
    return [curve for _, curve in chosen.groupby("curve", sort=False)]


def edges(tries: pandas.DataFrame, best: Any) -> list[str]:
    """The rates and decays of a grid's best try that are the grid's first or last: a better one may lie beyond.

    An optimizer's own options that are numbers count too. Beyond a value of 0 nothing lies.

    Args:
        tries: A row a try; ``options`` are mappings, or one text for all.
        best: The row of the best one.
    """
    own = _options(tries)
    tries = tries.join(own)
    varied = [name for name in (*TUNED_FIELDS, *own) if name in tries and tries[name].nunique() > 1]
    found, chosen = [], tries.loc[best.name]
    for name in (name for name in (*_SCALES, *own) if name in varied):
        # Rates are those beside which all else is the same; to each decay may belong other rates.
        others = [other for other in varied if other != name and name == "lr"]
        values = tries.loc[(tries[others] == chosen[others]).all(axis=1), name]
        if chosen[name] and chosen[name] in (values.min(), values.max()):
            found.append(name)
    return found


def _options(tries: pandas.DataFrame) -> pandas.DataFrame:
    """The numbers among the options that are tried, a column each."""
    if "options" not in tries or not all(isinstance(one, Mapping) for one in tries["options"]):
        return pandas.DataFrame(index=tries.index)
    # A configuration leaves out what is its optimizer's default.
    known = {name: methods[name].defaults() if name in methods else {} for name in tries["method"].unique()}
    names = {name for one in tries["options"] for name in one}
    rows = [
        {name: one.get(name, known[method].get(name)) for name in sorted(names)}
        for method, one in zip(tries["method"], tries["options"], strict=True)
    ]
    return pandas.DataFrame(rows, index=tries.index).select_dtypes("number").add_prefix("the optimizer's ")


class _Best(NamedTuple):
    """The best settings of a grid, of how many, and whether they stand at one of its `edges`."""

    settings: str
    tries: int
    at_edge: bool


_UNTUNED = _Best("", 0, False)


def _field(name: str, value: Any) -> str:
    if name == "decays":
        return "with decay" if value else "without decay"
    return f"{name}={'none' if value == '' else value}"


def _tuned(
    tuning: pandas.DataFrame, confirming: pandas.DataFrame, fields: Sequence[str]
) -> dict[str, _Best]:
    """The grid over some fields that each curve is the best of; `_UNTUNED` of one that is not the best."""
    grid = [*(name for name in FIELDS if name not in (*fields, *_OF_RUN, "holdout")), "decays"]
    ends = tuning.groupby("digest").tail(1)
    scores = ends["validation_error"].where(~ends["constant"], ends["clean_loss"])
    ends = ends.assign(score=scores.where(ends["status"] == "finished"))
    found = _read(confirming, ends, grid, fields)
    shared = [name for name in grid if name not in _SCHEDULE]
    for epochs, runs in confirming[confirming["constant"]].groupby("epochs"):
        reached = tuning[(tuning["epoch"] == epochs) & (tuning["current_lr"] == tuning["lr"])]
        # A grid of its own comes first, whatever a longer one has reached.
        found = _read(runs, reached.assign(score=reached["clean_loss"]), shared, fields) | found
    return found


def _read(
    runs: pandas.DataFrame, tries: pandas.DataFrame, grid: Sequence[str], fields: Sequence[str]
) -> dict[str, _Best]:
    """For each curve that has a grid what is best there, if these are its settings."""
    best = _best(tries.assign(grid=_spelled(tries, grid), settings=_spelled(tries, fields)))
    found = {}
    for curve, run in _one_each(runs.assign(grid=_spelled(runs, grid), settings=_spelled(runs, fields))):
        if run["grid"] in best:
            mine = best[run["grid"]]
            found[curve] = mine if mine.settings == run["settings"] else _UNTUNED
    return found


def _best(tries: pandas.DataFrame) -> dict[str, _Best]:
    """The settings with the lowest mean score in each grid.

    A setting counts once all seeds of its grid are there, one or both of those for tuning; a run without a score, which
    diverged, is never the best.
    """
    best = {}
    for grid, alike in tries.groupby("grid"):
        whole = [s for _, s in alike.groupby("settings") if set(s["seed"]) == set(alike["seed"])]
        scores = {s["settings"].iloc[0]: s["score"].astype(float).mean(skipna=False) for s in whole}
        scores = {settings: score for settings, score in scores.items() if score == score}
        if len(whole) > 1 and scores:
            chosen = min(scores, key=scores.__getitem__)
            firsts = pandas.concat([s.iloc[[0]] for s in whole])
            ends = edges(firsts, firsts[firsts["settings"] == chosen].iloc[0])
            best[str(grid)] = _Best(chosen, len(whole), bool(ends))
    return best


def _one_each(runs: pandas.DataFrame) -> Iterator[tuple[str, Any]]:
    for _, run in runs.drop_duplicates("curve").iterrows():
        yield run["curve"], run


def _chosen_by(run: Any) -> str:
    """Who chose the rates of a run: the ``source`` of its method, this ``project``, or ``nobody`` that is known.

    ``parts`` if it is not the method that its source has: without clipping, say.
    """
    settings = method_settings(run["method"], run["dataset"])
    if not run["nesterov"] or not run["plain"] or any(run[n] != settings[n] for n in _PARTS & settings.keys()):
        return "parts"
    if run["weight_decay"] not in _DECAYS:
        return "nobody"
    if run["method"] == "psi-sgd":
        chosen = run["lr"], run["momentum"]
        return "source" if chosen in _PSI else "project" if chosen == _OWN_PSI else "nobody"
    acting = {name: value for name, value in settings.items() if (run["method"], name) != ("sgd", "rule")}
    return "source" if all(run[name] == value for name, value in acting.items()) else "nobody"


def _spelled(frame: pandas.DataFrame, names: Sequence[str]) -> pandas.Series:
    """The values of some fields of each row's run as one text: equal exactly if all are; nothing and NaN are one."""
    runs = frame.drop_duplicates("digest")
    rows = runs[list(names)].itertuples(index=False, name=None)
    spelled = ("|".join("" if v is None or v != v else str(v) for v in row) for row in rows)
    return frame["digest"].map(dict(zip(runs["digest"], spelled, strict=True))).astype(str)
