"""What is a run, and which part of it decides the result?"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["METHODS", "RECIPE", "RunConfig"]

# Raised whenever a change of code changes what an equal configuration computes: old records then keep their
# own digests, and no run is mistaken for one of the new recipe. Version 1 means: initial weights, order of
# the images, augmentation and dropout drawn from the seed as in stream.py and train.py; batches that run
# across epoch borders; Nesterov momentum wherever the optimizer is plain SGD; Adam-G's eps 1e-8.
RECIPE = 1

DATASETS = ("digits", "fashion-mnist", "cifar10", "cifar100", "svhn")

# Which of the fields below act on each method; the others are set to their neutral value, so that two runs
# that compute the same thing have the same digest.
METHODS: dict[str, frozenset[str]] = {
    "sgd": frozenset(),
    "sgd-g": frozenset({"rest_lr", "rest_momentum", "grad_clip", "alpha"}),
    "adam-g": frozenset({"rest_lr", "rest_momentum", "grad_clip", "alpha", "beta2"}),
    "psi-sgd": frozenset({"rest_lr", "rest_momentum"}),
}
_NEUTRAL: dict[str, float | None] = {
    "rest_lr": None,
    "rest_momentum": None,
    "grad_clip": None,
    "alpha": 0.0,
    "beta2": None,
}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run: everything its result depends on, checked when it is made.

    A field that does not act on the method (``grad_clip`` of ``sgd``, say) is set to a neutral value, and the
    ``drop_factor`` of a run without drops to its default, so that equal runs are equal configurations.

    Args:
        network: ``vgg-11``, ``vgg-13``, ``vgg-16``, ``vgg-19`` or ``wrn-DEPTH-WIDEN``.
        dataset: ``digits``, ``fashion-mnist``, ``cifar10``, ``cifar100``, ``svhn`` or ``imagefolder:PATH``.
        method: ``sgd``, ``sgd-g``, ``adam-g`` or ``psi-sgd``.
        epochs: Passes over the training set.
        lr: Learning rate; with the Riemannian methods, that of the weights on the manifold.
        width: Factor on the channels; for a WRN on top of the one in its name.
        dropout: Probability that a value of a WRN block is dropped; 0 for VGG.
        train_size: Train on so many images, the same for every seed, balanced over the classes; None: all.
        rule: Which weights are on the manifold (for ``sgd``: which are measured), as in `riembn.split`.
        batch_size: Images a step.
        rest_lr: Learning rate of everything that is not on the manifold.
        momentum: Of the manifold part; for ``adam-g`` it is beta1, for ``sgd`` that of all parameters.
        rest_momentum: Nesterov momentum of everything that is not on the manifold.
        grad_clip: Bound on a weight vector's gradient norm, radians; None for none.
        alpha: Strength of the orthogonality regularizer L^O.
        beta2: Decay of Adam-G's second moment.
        weight_decay: L2 on all parameters for ``sgd``, else on the weights that are not on the manifold.
        drops: Epochs after which all learning rates are multiplied by ``drop_factor``.
        drop_factor: See ``drops``.
        bn_decay: Share of the running statistics that BatchNorm keeps at each step.
        augment: Reflect-pad by 4, crop at random, flip at random.
        pixels: ``standardize`` to zero mean and unit deviation a channel, or ``unit``: divide by 255 only.
        precision: Of the network's arithmetic: ``float32``, or under autocast ``bfloat16``, or ``float16`` with
            scaled gradients, on one device. Weights, optimizer and loss are float32 throughout.
        accumulate: Parts a batch is computed in: one after the other, to fit into memory, or side by side on
            several devices. BatchNorm normalizes each part by itself, so that what is learned depends on it, and
            not on the devices: as many parts as devices are per-device statistics, one part is statistics
            of the whole batch, wherever it lies (as by SyncBatchNorm).
        seed: Draws initial weights, order of the images, augmentation and dropout.

    Raises:
        ValueError, TypeError: In one line: the field, what was given, what is accepted.
    """

    network: str
    dataset: str
    method: str
    epochs: int
    lr: float
    width: float = 1.0
    dropout: float = 0.0
    train_size: int | None = None
    rule: Literal["invariant", "paper"] = "invariant"
    batch_size: int = 128
    rest_lr: float | None = 0.01
    momentum: float = 0.9
    rest_momentum: float | None = 0.9
    grad_clip: float | None = 0.1
    alpha: float = 0.0
    beta2: float | None = 0.99
    weight_decay: float = 5e-4
    drops: tuple[int, ...] = ()
    drop_factor: float = 0.2
    bn_decay: float = 0.99
    augment: bool = False
    pixels: Literal["standardize", "unit"] = "standardize"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    accumulate: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            self._set(field.name, _CHECKS[field.name](field.name, getattr(self, field.name)))
        for name, neutral in _NEUTRAL.items():
            if name not in METHODS[self.method]:
                self._set(name, neutral)
            elif getattr(self, name) is None and name != "grad_clip":
                raise _refused(name, None, f"a number, since method={self.method!r} uses it")
        if not self.drops or self.drop_factor == 1:
            self._set("drops", ())
            self._set("drop_factor", FIELDS["drop_factor"])
        self._check_together()

    def _check_together(self) -> None:
        if self.drops and self.drops[-1] >= self.epochs:
            raise _refused("drops", self.drops, f"epochs before the last one, with epochs={self.epochs}")
        if self.train_size is not None and self.train_size < self.batch_size:
            raise _refused("batch_size", self.batch_size, f"at most train_size={self.train_size}")
        if self.batch_size % self.accumulate or self.batch_size < 2 * self.accumulate:
            raise _refused(
                "accumulate",
                self.accumulate,
                f"parts of equal size, two images or more, of batch_size={self.batch_size}",
            )
        if self.network.startswith("vgg") and self.dropout:
            raise _refused("dropout", self.dropout, f"0 with network={self.network!r}; only a WRN drops out")

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def replace(self, **changes: Any) -> RunConfig:
        """This configuration with some fields changed.

        A change of method gives the fields that had no meaning for the old one their defaults, not the
        neutral values they were set to.
        """
        unknown = sorted(set(changes) - FIELDS.keys())
        if unknown:
            raise TypeError(f"RunConfig: no field {', '.join(unknown)}; the fields are {', '.join(FIELDS)}.")
        fields = dataclasses.asdict(self)
        if "method" in changes:
            for name in _NEUTRAL.keys() - METHODS[self.method]:
                del fields[name]
        return RunConfig(**{**fields, **changes})

    def digest(self) -> str:
        """Sixteen hexadecimal digits that name the result: the same exactly if the same is computed.

        Fields at their default are left out, so that a field added later with a default that means "as
        before" leaves every digest as it is. Of an image folder only the name counts, not where it lies.
        """
        return digest_of(self, RECIPE)

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain values that JSON can hold."""
        return {**dataclasses.asdict(self), "drops": list(self.drops)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> RunConfig:
        """The inverse of `as_dict`; fields that are missing take their defaults."""
        unknown = sorted(set(fields) - FIELDS.keys())
        if unknown:
            raise ValueError(f"RunConfig: no field {', '.join(unknown)}; the fields are {', '.join(FIELDS)}.")
        return cls(**fields)

    @property
    def name(self) -> str:
        """Readable and safe as a file name: network, data set, method, seed, digest."""
        return "-".join([self.network, _portable(self.dataset), self.method, f"s{self.seed}", self.digest()])


def digest_of(config: RunConfig, recipe: int) -> str:
    """`RunConfig.digest` as of a given version of the recipe: what reads records of older ones needs."""
    said = {
        name: value
        for name, value in config.as_dict().items()
        if FIELDS[name] is dataclasses.MISSING or value != _plain(FIELDS[name])
    }
    said["dataset"] = _portable(config.dataset)
    text = json.dumps({"recipe": recipe, **said}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _portable(dataset: str) -> str:
    kind, _, path = dataset.partition(":")
    return f"{kind}-{path.rstrip('/').rsplit('/', 1)[-1]}" if path else kind


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _refused(field: str, given: object, accepted: str) -> ValueError:
    return ValueError(f"RunConfig: {field}={given!r} is not accepted; give {accepted}.")


def _number(low: float, high: float = math.inf, *, open_low: bool = False, none: bool = False) -> Callable:
    left, right = ("(" if open_low else "["), (")" if high == math.inf else "]")
    accepted = f"a finite number in {left}{low:g}, {high:g}{right}" + (", or None" if none else "")

    def check(field: str, value: Any) -> float | None:
        if value is None and none:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"RunConfig: {field}={value!r} is not accepted; give {accepted}.")
        if not math.isfinite(value) or not low <= value <= high or (open_low and value == low):
            raise _refused(field, value, accepted)
        return float(value)

    return check


def _integer(low: int, *, none: bool = False) -> Callable:
    accepted = f"a whole number of at least {low}" + (", or None" if none else "")

    def check(field: str, value: Any) -> int | None:
        if value is None and none:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"RunConfig: {field}={value!r} is not accepted; give {accepted}.")
        if value < low:
            raise _refused(field, value, accepted)
        return value

    return check


def _choice(*accepted: str) -> Callable:
    def check(field: str, value: Any) -> str:
        if value not in accepted:
            raise _refused(field, value, "one of " + ", ".join(accepted))
        return value

    return check


def _network(field: str, value: Any) -> str:
    vgg = re.fullmatch(r"vgg-(11|13|16|19)", str(value))
    wrn = re.fullmatch(r"wrn-([1-9]\d*)-(0\.\d*[1-9]|[1-9]\d*(\.\d*[1-9])?)", str(value))
    if not (vgg or (wrn and int(wrn[1]) >= 10 and int(wrn[1]) % 6 == 4)):
        raise _refused(
            field, value, "vgg-11, vgg-13, vgg-16, vgg-19, or wrn-DEPTH-WIDEN, DEPTH 10, 16, 22, …"
        )
    return value


def _dataset(field: str, value: Any) -> str:
    if value not in DATASETS and not (str(value).startswith("imagefolder:") and len(value) > 12):
        raise _refused(field, value, f"one of {', '.join(DATASETS)}, or imagefolder:PATH")
    return value


def _flag(field: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"RunConfig: {field}={value!r} is not accepted; give True or False.")
    return value


def _epochs(field: str, value: Any) -> tuple[int, ...]:
    accepted = "whole numbers of at least 1, each larger than the one before, e.g. (60, 120, 160)"
    if not isinstance(value, tuple | list) or any(
        isinstance(e, bool) or not isinstance(e, int) for e in value
    ):
        raise TypeError(f"RunConfig: {field}={value!r} is not accepted; give {accepted}.")
    if any(after <= before for before, after in zip((0, *value), value, strict=False)):
        raise _refused(field, value, accepted)
    return tuple(value)


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "network": _network,
    "dataset": _dataset,
    "method": _choice(*METHODS),
    "epochs": _integer(1),
    "lr": _number(0, open_low=True),
    "width": _number(0, open_low=True),
    "dropout": _number(0, 0.99),
    "train_size": _integer(1, none=True),
    "rule": _choice("invariant", "paper"),
    "batch_size": _integer(2),  # one image alone has no batch statistics
    "rest_lr": _number(0, open_low=True, none=True),
    "momentum": _number(0, 0.9999),
    "rest_momentum": _number(0, 0.9999, none=True),
    "grad_clip": _number(0, open_low=True, none=True),
    "alpha": _number(0),
    "beta2": _number(0, 0.999999, none=True),
    "weight_decay": _number(0),
    "drops": _epochs,
    "drop_factor": _number(0, 1, open_low=True),
    "bn_decay": _number(0, 0.9999),
    "augment": _flag,
    "pixels": _choice("standardize", "unit"),
    "precision": _choice("float32", "bfloat16", "float16"),
    "accumulate": _integer(1),
    "seed": _integer(0),
}

# Every field with its default.
FIELDS: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(RunConfig)}
