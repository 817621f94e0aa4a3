"""A study: what varies, with which seeds, against which baseline, tuned how; its runs, and what they say."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas

from ..experiment.config import RunConfig, refuse_idle, refuse_unknown
from ..experiment.record import COLUMNS, as_number_or_text
from ..experiment.store import Store, tidy
from ..methods import methods as known_methods
from ..training.sweep import sweep
from . import stats
from .readings import at_full_rate
from .settings import TUNING_SEEDS

CELL = "cell"


class Study:
    """Runs of a configuration that differ in a few fields, repeated over seeds.

    Every combination of the varied fields' values and methods is a *cell*. With ``tune``, each cell first tries its
    grid on a validation set that is held out of the training images, never on the test set; its best combination, the
    lowest mean of ``tune_by`` at the end, is then run on the study's own seeds.

    Args:
        base: What all runs have in common.
        vary: Values of fields of the configuration, all combinations of which are run. ``{"alpha": [0, 0.1]}``.
            Methods have an argument of their own, and so have seeds.
        methods: Names in `riembn.methods`, run with all of these; None for the base's own.
        settings: Fields that are set by method, over the base's: ``{"psi-sgd": {"lr": 0.1}}``. A method other than the
            base's has its own learning rate unless one is given here.
        baseline: The values of varied fields, or the method, that the others are compared with.
        seeds: Whole numbers, at least two.
        looks: How many times it is compared, each time with more seeds or tries; see `riembn.evidence.stats.compare`.
        tune: For each method (or for all, under ``"*"``) the grid: a mapping of fields to values, whose combinations
            are tried, or a sequence of mappings, each one try.
        holdout: Images of the validation set of the tuning runs.
        tune_by: The column that is tuned, less is better; at the last epoch, or at ``tune_epoch``.
        tune_epoch: The epoch at which it is read.
        tune_seeds: Seeds of the tuning runs, none of them among ``seeds``.

    Raises:
        ValueError: If there are fewer than two seeds, a seed is given twice or is also a tuning seed, the baseline
            is not among the values, something is said of a method that is not run, a field that varies is also
            tuned, a field does not act on a method, or ``tune_by`` is no column of a tuning run.
        TypeError: For an unknown field.
    """

    def __init__(
        self,
        base: RunConfig,
        *,
        vary: Mapping[str, Iterable[Any]] | None = None,
        methods: Sequence[str] | None = None,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        baseline: Mapping[str, Any] | str | None = None,
        seeds: Iterable[int] = range(5),
        looks: int = 1,
        tune: Mapping[str, Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]]] | None = None,
        holdout: int = 5000,
        tune_by: str = "validation_error",
        tune_epoch: int | None = None,
        tune_seeds: Sequence[int] = TUNING_SEEDS,
    ) -> None:
        self.base = base
        self.vary = {name: list(values) for name, values in (vary or {}).items()}
        self.methods = list(methods or [base.method])
        self.settings = {name: dict(fields) for name, fields in (settings or {}).items()}
        self.baseline = {"method": baseline} if isinstance(baseline, str) else dict(baseline or {})
        self.seeds, self.looks = [int(seed) for seed in seeds], looks
        self.tune = dict(tune or {})
        self.holdout, self.tune_by, self.tune_epoch = holdout, tune_by, tune_epoch
        self.tune_seeds = list(tune_seeds)
        self._check()
        self.cells = self._cells()
        for name in self.baseline.keys() - {"method"}:  # as its configuration has it
            one = self.base.replace(method=self.methods[0], **{name: self.baseline[name]})
            self.baseline[name] = getattr(one, name)

    def _check(self) -> None:
        if len(self.seeds) < 2 or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"Study: seeds={self.seeds} is not accepted; give two or more, each once.")
        if self.tune and set(self.seeds) & set(self.tune_seeds):
            raise ValueError(f"Study: seeds={self.seeds} overlap the tuning seeds {self.tune_seeds}.")
        refuse_unknown("Study", {*self.vary, *(name for fields in self.settings.values() for name in fields)})
        for name, values in self.vary.items():
            if len(values) < 1 or any(values.count(value) > 1 for value in values):
                raise ValueError(f"Study: vary={{{name!r}: {values}}} is not accepted; give values, each once.")
        if own := {"method", "seed"} & self.vary.keys():
            raise ValueError(f"Study: vary={sorted(own)} is not accepted; give methods=…, seeds=….")
        for what, keys in (("settings", self.settings.keys()), ("tune", self.tune.keys() - {"*"})):
            if others := sorted(keys - set(self.methods)):
                raise ValueError(f"Study: {what} names {', '.join(others)}, not among the methods {self.methods}.")
        if self.tune_by not in COLUMNS or self.tune_by.startswith("test_"):
            raise ValueError(
                f"Study: tune_by={self.tune_by!r} is not accepted; give a column of a record, not of the test set."
            )
        for name, value in self.baseline.items():
            among = self.methods if name == "method" else self.vary.get(name, [])
            if value not in among:
                raise ValueError(f"Study: baseline {name}={value!r} is not among {among}.")

    def _cells(self) -> list[dict[str, Any]]:
        """Method and varied fields of each cell."""
        found, seen = [], set()
        for method, *values in itertools.product(self.methods, *self.vary.values()):
            cell = {"method": method, **dict(zip(self.vary, values, strict=True))}
            config = self._config(cell)
            refuse_idle("Study", config, {name: cell[name] for name in self.vary})
            for one in ({}, *self._tries(cell)):
                if twice := sorted(one.keys() & self.vary.keys()):
                    raise ValueError(f"Study: {twice[0]} is varied and tuned; leave one out.")
                said = {**self.settings.get(method, {}), **one}
                refuse_idle("Study", self._config(cell, **one), {n: v for n, v in said.items() if n not in cell})
            if config.digest() in seen:
                raise ValueError(f"Study: {cell} is the run of another cell too; give each once.")
            seen.add(config.digest())
            found.append(cell)
        return found

    def _config(self, cell: Mapping[str, Any], **more: Any) -> RunConfig:
        own = {} if cell["method"] == self.base.method else {"lr": known_methods[cell["method"]].lr}
        return self.base.replace(**{**own, **self.settings.get(cell["method"], {}), **cell, **more})

    def _tries(self, cell: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The grid of a cell, a dictionary a try; one empty try where nothing is tuned."""
        given = self.tune.get(cell["method"], self.tune.get("*", {}))
        if isinstance(given, Mapping):
            return [dict(zip(given, values, strict=True)) for values in itertools.product(*given.values())]
        return [dict(one) for one in given]

    def tuning(self) -> list[RunConfig]:
        """The tuning runs of all cells; none where nothing is tuned."""
        return [
            config
            for cell in self.cells
            if len(self._tries(cell)) > 1
            for one in self._tries(cell)
            for config in self._of_try(cell, one)
        ]

    def _of_try(self, cell: Mapping[str, Any], one: Mapping[str, Any]) -> list[RunConfig]:
        """The tuning runs of one try."""
        run = self._config(cell, **one)
        read = (self.tune_epoch or run.epochs,)
        return [run.replace(seed=seed, holdout=self.holdout, evaluate_at=read) for seed in self.tune_seeds]

    def tuned(self, store: Store | str | Path) -> pandas.DataFrame:
        """One row a try of the tuning: its cell's and all tuned fields, the mean of ``tune_by``, ``best``."""
        store = Store(store) if not isinstance(store, Store) else store
        rows: list[dict[str, Any]] = []
        for number, cell in enumerate(self.cells):
            if len(tries := self._tries(cell)) < 2:
                continue
            means = [self._mean(store, self._of_try(cell, one)) for one in tries]
            if math.isinf(min(means)):
                raise ValueError(f"Study: every try of {cell} diverged; tune on another grid.")
            best, names = means.index(min(means)), dict.fromkeys(name for one in tries for name in one)
            for place, (one, mean) in enumerate(zip(tries, means, strict=True)):
                run = self._config(cell, **one)  # a try need not say what others vary
                said = {name: getattr(run, name) for name in names}
                rows.append({**cell, **said, CELL: number, self.tune_by: mean, "best": place == best})
        return pandas.DataFrame(rows)

    def _mean(self, store: Store, configs: Sequence[RunConfig]) -> float:
        """The mean of ``tune_by`` over seeds; infinite where a run diverged."""
        values = []
        for config in configs:
            record = store.get(config)
            if record is None:
                raise FileNotFoundError(f"Study: the tuning run {config.name} is not in {store.path}; call run first.")
            if record.status == "diverged":
                return math.inf
            value = record.columns[self.tune_by][(self.tune_epoch or config.epochs) - 1]
            values.append(math.inf if value is None else float(value))
        return sum(values) / len(values)

    def configs(self, store: Store | str | Path | None = None) -> list[RunConfig]:
        """The runs of all cells on the study's seeds; of tuned cells at what the tuning runs in ``store`` chose."""
        tries = [self._tries(cell) or [{}] for cell in self.cells]
        best: dict[Any, int] = {}
        if self.tuning():
            if store is None:
                raise ValueError("Study: what was tuned is in a store; give it.")
            for number, of_cell in self.tuned(store).groupby(CELL):
                best[number] = of_cell["best"].to_list().index(True)
        return [
            self._config(cell, **tries[number][best.get(number, 0)], seed=seed)
            for number, cell in enumerate(self.cells)
            for seed in self.seeds
        ]

    def run(self, store: Store | str | Path, n_jobs: int = 1, **options: Any) -> pandas.DataFrame:
        """Read the records that are there, and train what is missing: first the tuning, then the study's own runs.

        Args:
            store: Where records are kept.
            n_jobs: Processes side by side.
            options: As for `riembn.sweep`.

        Returns:
            What `frame` returns.
        """
        if missing := self.tuning():
            sweep(missing, store=store, n_jobs=n_jobs, **options)
        sweep(self.configs(store), store=store, n_jobs=n_jobs, **options)
        return self.frame(store)

    def frame(self, store: Store | str | Path) -> pandas.DataFrame:
        """One row a run and epoch of the study's own runs, as `riembn.Store.frame`, with the number of its ``cell``.

        Raises:
            FileNotFoundError: If a record is missing; `run` trains it.
        """
        store = Store(store) if not isinstance(store, Store) else store
        frames = []
        for place, config in enumerate(self.configs(store)):
            record = store.get(config)
            if record is None:
                raise FileNotFoundError(f"Study: {config.name} is not in {store.path}; call run first.")
            frames.append(tidy(iter([record])).assign(**{CELL: place // len(self.seeds)}))
        return pandas.concat(frames, ignore_index=True)

    def missing(self, store: Store | str | Path) -> list[RunConfig]:
        """The runs without a record, of which a page says that they are still to be made; of tuned cells the tuning."""
        store = Store(store) if not isinstance(store, Store) else store
        wanted = [config for config in self.tuning() if store.get(config) is None]
        return wanted or [config for config in self.configs(store) if store.get(config) is None]

    def remaining(self, store: Store | str | Path) -> list[RunConfig]:
        """All runs that are still to be made: what is `missing`, and what follows it, at each cell's first try."""
        missing, tuning = self.missing(store), {config.digest() for config in self.tuning()}
        if not any(config.digest() in tuning for config in missing):
            return missing
        firsts = [(cell, self._tries(cell)[0]) for cell in self.cells]
        return missing + [self._config(cell, **one, seed=seed) for cell, one in firsts for seed in self.seeds]

    def ends(self, frame: pandas.DataFrame, diverged: Mapping[str, float] | None = None) -> pandas.DataFrame:
        """One row a run: its last epoch, and what is read off the epochs before.

        Args:
            frame: What `run` returned.
            diverged: What a diverged run counts as, ``{"test_error": 90.0}``; None refuses one.

        Returns:
            The last epoch's columns, and ``early_error``, ``early_loss`` (training error and clean training loss in the
            last epoch before the rate first drops), ``early_angle``, ``early_clipped``, ``early_gradient`` (means over
            the epochs before it), ``early_spread`` (so too: the standard deviation of the angle over rows and probed
            steps, divided by its mean), ``rise`` (largest rise of the test error from one evaluation to the next,
            points; NaN with fewer than two). A run that diverged before the rate first drops has no early error or
            loss but what ``diverged`` says.
        """
        ends = stats.at_end(frame, diverged=dict(diverged) if diverged else None)
        spread = ((frame["angle_rms"] / frame["angle"]) ** 2 - 1).clip(lower=0.0) ** 0.5
        early = frame.assign(spread=spread)[at_full_rate(frame)].groupby("digest")
        last, mean = early.last(), early[["angle", "clipped", "gradient_norm", "spread"]].mean()
        evaluated = frame[frame["test_error"].notna()].groupby("digest")["test_error"]
        rise = evaluated.agg(lambda error: error.diff().max()).clip(lower=0.0)
        read_off = {
            "early_error": last["train_error"],
            "early_loss": last["clean_loss"],
            "early_angle": mean["angle"],
            "early_clipped": mean["clipped"],
            "early_gradient": mean["gradient_norm"],
            "early_spread": mean["spread"],
            "rise": rise,
        }
        ends = ends.assign(**{name: ends["digest"].map(values) for name, values in read_off.items()})
        first_drop = pandas.to_numeric(ends["drops"].str.split().str[0])
        too_soon = (ends["status"] == "diverged") & ~(ends["epoch"] >= first_drop)
        for name in ("early_error", "early_loss"):
            ends.loc[too_soon, name] = (diverged or {}).get(name, math.nan)
        return ends

    @property
    def by(self) -> str:
        """The field in which a comparison's two sides differ: the baseline's, or the first that varies."""
        if self.baseline:
            return next(iter(self.baseline))
        return next(iter(self.vary), "method")

    def compare(
        self,
        frame: pandas.DataFrame,
        value: str = "test_error",
        *,
        epoch: int | None = None,
        diverged: Mapping[str, float] | None = None,
        ends: pandas.DataFrame | None = None,
        **options: Any,
    ) -> pandas.DataFrame:
        """Each cell against its baseline, seed by seed; see `riembn.evidence.stats.compare`.

        Args:
            frame: What `run` or `frame` returned.
            value: The column to compare.
            epoch: At which epoch; None for the last.
            diverged: What a diverged run counts as.
            ends: One row a run with a value that `ends` does not give; then the two before play no part.
            options: As for `stats.compare`: ``asked``, ``less_is_better``, ``margin``.
        """
        runs = ends
        if runs is None:
            runs = self.ends(frame, diverged) if epoch is None else frame[frame["epoch"] == epoch]
        within = [name for name in ("method", *self.vary) if name != self.by]
        within = [name for name in within if runs[name].nunique(dropna=False) > 1]
        baseline = as_number_or_text(self.by, self.baseline.get(self.by, getattr(self.base, self.by)))
        options = {"looks": self.looks, **options}
        return stats.compare(runs, by=self.by, baseline=baseline, within=within, value=value, **options)

    def table(self, frame: pandas.DataFrame, values: Sequence[str] = ("test_error",)) -> pandas.DataFrame:
        """Mean and interval of some columns at the end, one row a cell."""
        runs = stats.at_end(frame)
        by = ["method", *(name for name in self.vary if name != "method")]
        tables = {value: stats.summarize(runs, by=by, value=value) for value in values}
        columns = {
            f"{value} {name}": found.set_index(by)[name]
            for value, found in tables.items()
            for name in ("n", "mean", "low", "high")
        }
        return pandas.DataFrame(columns).reset_index()

    def verdict(
        self, frame: pandas.DataFrame, value: str = "test_error", claimed: str = "better", **options: Any
    ) -> str:
        """What the comparisons say of the claim that all cells are ``claimed`` (better, worse, equivalent)."""
        return stats.decide(self.compare(frame, value, **options)["verdict"], claimed)
