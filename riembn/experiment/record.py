"""What a run leaves behind, and whether what a file holds is such a record."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..methods import methods
from .config import KINDS, RECIPE, RunConfig, acting, digest_of
from .fields import Number, Options, Whole, written

if TYPE_CHECKING:
    import pandas

SCHEMA = 3

# One value an epoch each; None where a column has no meaning for the method or was not finite.
COLUMNS: dict[str, str] = {
    "epoch": "counted from 1",
    "step": "optimizer steps taken since the start",
    "current_lr": "learning rate of the epoch, after its drops",
    "train_loss": "mean loss of the epoch's batches, as they were trained on",
    "train_error": "percent of the epoch's images misclassified while they were trained on",
    "clean_loss": "mean loss on up to 2,000 training images after the epoch, in evaluation mode, not augmented",
    "validation_loss": "mean loss on the images held out for validation after the epoch",
    "validation_error": "percent of the images held out for validation misclassified after the epoch",
    "test_loss": "mean loss on the whole test set after the epoch",
    "test_error": "percent of the test set misclassified after the epoch",
    "angle": "radians a weight row turned in a step: mean over weight rows and probed steps",
    "angle_rms": "root mean square of that angle over weight rows and probed steps, radians",
    "clipped": "share of weight rows whose projected gradient exceeded grad_clip at the probed steps",
    "gradient_norm": "|w||h|, h the projected gradient with L^O: mean over weight rows and probed steps",
    "weight_norm": "mean norm of a weight row after the epoch",
    "effective_lr": "rate on the unit sphere after the epoch: mean lr/|w|^2 for sgd, lr for the others",
    "orthogonality": "L^O/alpha after the epoch: sum over weights of |YY^T - I|^2/2, rows of unit length",
    "cosine": "root mean square cosine between two rows of one weight after the epoch",
    "seconds": "wall time of the epoch's training, without evaluation",
    "images_per_second": "training speed of the epoch",
    "peak_memory": "MiB: of the device's memory in the epoch; on a CPU of the process since it started",
}
# Columns that say something of the machine: two runs of one configuration do not share them.
MACHINE = ("seconds", "images_per_second", "peak_memory")


@dataclass(frozen=True, kw_only=True)
class Record:
    """A run that has ended: its configuration, one value an epoch in each column, and where it ran.

    Args:
        config: What was run.
        status: ``finished``, or ``diverged``: stopped because a training loss was not finite.
        diverged_step: The step (counted from 0) whose loss was not finite; the columns hold the whole
            epochs before it.
        columns: Equally long lists by the names of ``COLUMNS``.
        environment: Device, versions, commit, threads, wall time. Of a run that was gone on with elsewhere, also
            the environments before, under ``earlier``, each with the steps taken by its end as ``until_step``.
        recipe: Version of the recipe the run followed.
        predictions: The class that the trained network gives to each of the first 1,000 test images; None if the
            test set was not looked at.
    """

    config: RunConfig
    status: str
    columns: Mapping[str, list[Any]]
    diverged_step: int | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    recipe: int = RECIPE
    predictions: list[int] | None = None

    def __post_init__(self) -> None:
        if self.status not in ("finished", "diverged"):
            raise ValueError(f"status is {self.status!r}; it is finished or diverged")
        if (self.status == "diverged") != isinstance(self.diverged_step, int):
            raise ValueError(f"status {self.status!r} does not go with diverged_step={self.diverged_step!r}")
        if set(self.columns) != set(COLUMNS):
            raise ValueError(
                f"columns differ from the schema's in {sorted(set(self.columns) ^ set(COLUMNS))}"
            )
        lengths = {name: len(values) for name, values in self.columns.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"columns are not equally long: {lengths}")
        if self.status == "finished" and len(self.columns["epoch"]) != self.config.epochs:
            raise ValueError(f"{len(self.columns['epoch'])} epochs of {self.config.epochs} in a finished run")
        for name, values in self.columns.items():
            if not all(v is None or (type(v) in (int, float) and math.isfinite(v)) for v in values):
                raise ValueError(f"column {name} holds something that is no finite number")

    @property
    def digest(self) -> str:
        """The configuration's digest, under the recipe that the run followed."""
        return digest_of(self.config, self.recipe)

    def same_result(self, other: Record) -> bool:
        """Whether two runs computed the same, to the last bit that a record keeps; times and memory may differ."""

        def result(record: Record) -> object:
            kept = {name: values for name, values in record.columns.items() if name not in MACHINE}
            outcome = record.status, record.diverged_step, record.predictions
            return record.config, record.recipe, outcome, kept

        return result(self) == result(other)

    def frame(self) -> pandas.DataFrame:
        """One row an epoch: the configuration's fields, digest and status, then the columns.

        Lists of epochs are text, with blanks between, and so are options and, in the last row, the predictions.
        What does not apply is NaN; ``grad_clip`` is infinite where a method clips nothing. A run that diverged in
        its first epoch has one row, epoch 0, so that it is not forgotten.
        """
        import pandas

        return pandas.DataFrame(self.rows())

    def rows(self) -> dict[str, list[Any]]:
        """What `frame` has, as lists: of many records these are put together in a fraction of the time."""
        numbers = {name: [math.nan if v is None else v for v in self.columns[name]] for name in COLUMNS}
        if not numbers["epoch"]:
            numbers |= {name: [math.nan] for name in COLUMNS} | {"epoch": [0], "step": [0]}
        said = {name: as_number_or_text(name, value) for name, value in self.config.as_dict().items()}
        how = methods.get(self.config.method)
        if self.config.grad_clip is None and not (how and "grad_clip" in acting(how, self.config.as_dict())):
            said["grad_clip"] = math.nan
        said |= {"digest": self.digest, "status": self.status}
        count = len(numbers["epoch"])
        last = " ".join(map(str, self.predictions or ()))
        fields = {name: [value] * count for name, value in said.items()}
        return {**fields, **numbers, "predictions": [""] * (count - 1) + [last]}

    def to_json(self) -> str:
        """Compact text with a line a column, so that a rerun changes few lines in git."""
        head = {
            "schema": SCHEMA,
            "recipe": self.recipe,
            "digest": self.digest,
            "status": self.status,
            "diverged_step": self.diverged_step,
            "config": self.config.as_dict(),
            "environment": dict(self.environment),
            "predictions": self.predictions,
            "checksum": self._checksum(),
        }
        lines = [f" {json.dumps(key)}: {json.dumps(value, allow_nan=False)}," for key, value in head.items()]
        columns = [
            f"  {json.dumps(name)}: {json.dumps(self.columns[name], allow_nan=False)}" for name in COLUMNS
        ]
        return "\n".join(["{", *lines, ' "columns": {', ",\n".join(columns), " }", "}"]) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Record:
        """The inverse of `to_json`.

        Raises:
            ValueError: If the text is no whole record, or its digest is not that of its configuration.
        """
        content = json.loads(text)
        schema = content.get("schema") if isinstance(content, dict) else None
        if schema != SCHEMA:
            raise ValueError(f"schema is {schema!r}; this version reads {SCHEMA}")
        names = ("recipe", "status", "diverged_step", "environment", "columns", "predictions")
        missing = [name for name in ("digest", "config", *names, "checksum") if name not in content]
        if missing:
            raise ValueError(f"no {', '.join(missing)}")
        config = RunConfig.from_dict(content["config"])
        record = cls(config=config, **{name: content[name] for name in names})
        if record.digest != content["digest"]:
            raise ValueError(f"digest is {content['digest']!r}, but its configuration's is {record.digest!r}")
        if record._checksum() != content["checksum"]:
            raise ValueError("its numbers are not those that were written: the checksum differs")
        return record

    def _checksum(self) -> str:
        """Of everything that was measured, so that an altered number is noticed."""
        told = [self.status, self.diverged_step, self.predictions, dict(self.environment), dict(self.columns)]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def as_number_or_text(field: str, value: Any) -> Any:
    """A field's value as a frame has it: infinite for no bound, NaN for no number, text for several values."""
    if isinstance(value, Mapping):
        return written(Options(value).plain())
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    if value is None and isinstance(KINDS[field], Number | Whole):
        return math.inf if field == "grad_clip" else math.nan  # a value to group by, where NaN means no such thing
    return value


def rounded(value: float | int | None) -> float | int | None:
    """A number as a record keeps it: seven significant digits; None if it is not finite."""
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return value
