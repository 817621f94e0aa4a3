"""A run's configuration: everything that its result depends on, and the digest that names it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

from ..data import Datasets, content_digest, datasets
from ..methods import REST, SHARED, Method, defaults_of, methods
from ..models import Networks, networks
from .fields import Epochs, Flag, Kind, Name, Number, Options, OptionsKind, Whole, declared
from .source import code_digest, is_foreign

# Raised whenever a change of code changes what an equal configuration computes: old records then keep their
# own digests, and no run is mistaken for one of the new recipe. Version 1 means: initial weights, order of
# the images, augmentation and dropout drawn from the seed as in batch_order.py and loop.py; batches that run
# across epoch borders; Nesterov momentum wherever the optimizer is plain SGD; Adam-G's eps 1e-8.
RECIPE = 1

# Which fields act only beside another one, and the value that stands where they do not: two runs that compute
# the same have the same digest.
_NEUTRAL: dict[str, Any] = {
    "rest": "sgd",
    "rest_options": Options(),
    "rest_lr": None,
    "rest_momentum": None,
    "nesterov": True,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "decay_on": "all",
    "lengths": "free",
    "grad_clip": None,
    "alpha": 0.0,
    "beta2": None,
    "options": Options(),
    "padding": 0,
    "flip": False,
    "drops": (),
    "drop_factor": 0.2,
}
_CONTROLS = frozenset({"decay_on", "lengths"})  # of the baseline: what its decay and its lengths do


@dataclass(frozen=True, kw_only=True)
class _Entry(Kind):
    """A name of an open table that checks its names itself."""

    table: Networks | Datasets

    @property
    def accepted(self) -> str:
        return self.table.accepted

    def _checked(self, field: str, value: Any) -> str:
        try:
            self.table.check(value)
        except ValueError as reason:
            raise ValueError(f"RunConfig: {reason}") from None
        return value


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run: everything its result depends on, checked when it is made.

    A field that does not act on the method (``grad_clip`` of ``sgd``, say) is set to a neutral value, and so is
    one that acts beside another only (``drop_factor`` without drops), so that equal runs are equal configurations.

    Args:
        network: A name of `riembn.networks`: ``vgg-11``, ``wrn-DEPTH-WIDEN``, ….
        dataset: A name of `riembn.datasets`: ``digits``, ``fashion-mnist``, …, or ``imagefolder:PATH``.
        method: A name of `riembn.methods`: ``sgd``, ``sgd-g``, ``adam-g``, ``psi-sgd``, ….
        epochs: Passes over the training set.
        lr: Learning rate; with the Riemannian methods, that of the weights on the manifold.
        width: Factor on the channels; for a WRN on top of the one in its name. ``wrn-10-1`` at width 2 is the network
            ``wrn-10-2``, but another configuration: it has a digest and a record of its own.
        dropout: Probability that a value of a WRN block is dropped; 0 for other networks.
        train_size: Train on so many images, the same for every seed, balanced over the classes; None: all.
        holdout: So many further images of the training set, never trained on, are the validation set; the test
            set is then not looked at. 0: no validation set. For tuning.
        rule: Which weights are on the manifold (for ``sgd``: which are measured), as in `riembn.split`.
        batch_size: Images a step.
        rest: Optimizer of everything that is not on the manifold: ``sgd``, ``adam`` or ``adamw``; None for the
            method's own.
        rest_options: Its further options, by its own names.
        rest_lr: Learning rate of everything that is not on the manifold; None for the method's own.
        momentum: Of the manifold part; for ``adam-g`` it is beta1, for ``sgd`` that of all parameters.
        rest_momentum: Momentum of everything that is not on the manifold, where ``rest`` is ``sgd``.
        nesterov: Nesterov's momentum, of ``sgd`` and of the rest; false for heavy ball.
        grad_clip: Bound on the norm of a weight row's gradient, loss per radian; None for none.
        alpha: Strength of the orthogonality regularizer L^O.
        beta2: Decay of Adam-G's second moment.
        options: Further options of the method, by its own names.
        weight_decay: L2 on all parameters for ``sgd``, else on the weights that are not on the manifold.
        decay_on: What the decay of ``sgd`` acts on: ``all`` parameters, the ``invariant`` ones, or the ``rest``.
        lengths: Of the invariant rows of ``sgd``: ``free``; ``frozen`` at what they are when the rate first drops;
            or ``replayed``: without decay on the rows, each at the effective rate lr/|w|^2 that it has in the run
            with decay, diverged where that one is.
        row_scale: Each invariant row is multiplied, before training, by a power of two between 2^-k and 2^k.
        start_noise: Relative size of a perturbation of all initial weights.
        schedule: How the rates change: in ``steps`` at ``drops``; by a ``cosine`` or ``linear`` to zero;
            ``one-cycle``: up from 1/25 in the first 30 %, then by a cosine to zero.
        warmup: Epochs in which the rates rise from zero.
        drops: Epochs after which all learning rates are multiplied by ``drop_factor``.
        drop_factor: See ``drops``.
        bn_decay: Share of the running statistics that BatchNorm keeps at each step.
        loss: ``cross-entropy``, or ``squared``: to the labels as unit vectors, mean over images.
        label_smoothing: Share of a label that is spread over all classes, in training.
        augment: Reflect-pad, crop at random, flip at random.
        padding: By how many pixels ``augment`` pads; with 0, and without ``flip``, nothing is augmented.
        flip: Whether ``augment`` flips.
        pixels: ``standardize`` to zero mean and unit deviation a channel, or ``unit``: divide by 255 only.
        precision: Of the network's arithmetic: ``float32``, or under autocast ``bfloat16``, or ``float16`` with
            scaled gradients, on one device. Weights, optimizer and loss are float32 throughout.
        accumulate: Parts a batch is computed in: one after the other, to fit into memory, or side by side on
            several devices. BatchNorm normalizes each part by itself, so that what is learned depends on it, and
            not on the devices: as many parts as devices are per-device statistics, one part is statistics
            of the whole batch, wherever it lies (as by SyncBatchNorm).
        evaluate_at: Epochs after which test or validation set is evaluated, besides the last; empty for all.
        seed: Draws initial weights, order of the images, augmentation and dropout.
        code: Hashes of what is not the package's own (a method, network or data set that was added, the content
            of an image folder); filled in when the configuration is made.

    Raises:
        ValueError, TypeError: In one line: the field, what was given, what is accepted.
    """

    network: str = declared(_Entry(table=networks))
    dataset: str = declared(_Entry(table=datasets))
    method: str = declared(Name(known=lambda: tuple(methods)))
    epochs: int = declared(Whole(low=1))
    lr: float = declared(Number(open_low=True))
    width: float = declared(Number(open_low=True), 1.0)
    dropout: float = declared(Number(high=0.99), 0.0)
    train_size: int | None = declared(Whole(none=True, low=1), None)
    holdout: int = declared(Whole(), 0)
    rule: Literal["invariant", "paper"] = "invariant"
    batch_size: int = declared(Whole(low=2), 128)  # one image alone has no batch statistics
    rest: str | None = declared(Name(none=True, known=lambda: tuple(REST)), None)
    rest_options: Options = declared(OptionsKind(), Options())
    rest_lr: float | None = declared(Number(none=True, open_low=True), None)
    momentum: float = declared(Number(high=0.9999), 0.9)
    rest_momentum: float | None = declared(Number(none=True, high=0.9999), 0.9)
    nesterov: bool = declared(Flag(), True)
    grad_clip: float | None = declared(Number(none=True, open_low=True), 0.1)
    alpha: float = declared(Number(), 0.0)
    beta2: float | None = declared(Number(none=True, high=0.999999), 0.99)
    options: Options = declared(OptionsKind(), Options())
    weight_decay: float = declared(Number(), 5e-4)
    decay_on: Literal["all", "invariant", "rest"] = "all"
    lengths: Literal["free", "frozen", "replayed"] = "free"
    row_scale: int = declared(Whole(), 0)
    start_noise: float = declared(Number(), 0.0)
    schedule: Literal["steps", "cosine", "linear", "one-cycle"] = "steps"
    warmup: float = declared(Number(), 0.0)
    drops: tuple[int, ...] = declared(Epochs(), ())
    drop_factor: float = declared(Number(high=1, open_low=True), 0.2)
    bn_decay: float = declared(Number(high=0.9999), 0.99)
    loss: Literal["cross-entropy", "squared"] = "cross-entropy"
    label_smoothing: float = declared(Number(high=0.99), 0.0)
    augment: bool = declared(Flag(), False)
    padding: int = declared(Whole(), 4)
    flip: bool = declared(Flag(), True)
    pixels: Literal["standardize", "unit"] = "standardize"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    accumulate: int = declared(Whole(low=1), 1)
    evaluate_at: tuple[int, ...] = declared(Epochs(), ())
    seed: int = declared(Whole(), 0)
    code: Options = declared(OptionsKind(), Options())

    def __post_init__(self) -> None:
        for name, kind in KINDS.items():
            self._set(name, kind.check(name, getattr(self, name)))
        how = methods[self.method]
        if self.rest is None:
            self._set("rest", how.rest)
        self._set("augment", self.augment and (self.padding > 0 or self.flip))
        for name in _NEUTRAL.keys() - acting(how, vars(self)):
            self._set(name, _NEUTRAL[name])
        if self.rest_lr is None and how.kind == "rows":
            self._set("rest_lr", how.rest_lr_of(self.rule, self.rest))
        for name in ("rest_momentum", "beta2"):
            if getattr(self, name) is None and name in acting(how, vars(self)):
                raise ValueError(
                    f"RunConfig: {name}=None is not accepted; give a number, since method={self.method!r} uses it."
                )
        self._check_together()
        self._check_options(how)
        self._set("options", self.options.beside(how.defaults()))
        of_rest = defaults_of(REST[self.rest or how.rest])
        shared = {name: self.options[name] for name in SHARED if name in self.options}
        self._set("rest_options", self.rest_options.beside({**of_rest, **shared}))
        if self.evaluate_at:
            asked = tuple(sorted({*self.evaluate_at, self.epochs}))
            self._set("evaluate_at", asked if len(asked) < self.epochs else ())
        self._set("code", Options(_code_of(self)))

    def _check_together(self) -> None:
        def refuse(name: str, accepted: str) -> None:
            raise ValueError(f"RunConfig: {name}={getattr(self, name)!r} is not accepted; give {accepted}.")

        if self.drops and self.drops[-1] >= self.epochs:
            refuse("drops", f"epochs before the last one, with epochs={self.epochs}")
        if self.evaluate_at and self.evaluate_at[-1] > self.epochs:
            refuse("evaluate_at", f"epochs up to epochs={self.epochs}")
        if self.warmup > self.epochs:
            refuse("warmup", f"at most epochs={self.epochs}")
        if self.train_size is not None and self.train_size < self.batch_size:
            refuse("batch_size", f"at most train_size={self.train_size}")
        if self.batch_size % self.accumulate or self.batch_size < 2 * self.accumulate:
            refuse("accumulate", f"parts of equal size, two images or more, of batch_size={self.batch_size}")
        for name, neutral in (("width", 1.0), ("dropout", 0.0)):
            if getattr(self, name) != neutral and name not in networks.takes(self.network):
                refuse(name, f"{neutral:g} with network={self.network!r}, which takes no {name}")
        if self.lengths == "frozen" and not self.drops:
            refuse("lengths", "'frozen' together with drops: they are frozen at the first")

    def _check_options(self, how: Method) -> None:
        # What fields set has one name, that of the field.
        by_fields = {"lr", *how.fields, *(("betas",) if "beta2" in how.fields else ())}
        of_rest = set(defaults_of(REST[self.rest or how.rest]))
        for field, accepted, set_by_fields, whose in (
            ("options", how.accepts(), by_fields, f"method={self.method!r}"),
            ("rest_options", of_rest, {"lr", "weight_decay", "momentum", "nesterov"}, f"rest={self.rest!r}"),
        ):
            given = getattr(self, field)
            if any(name in set_by_fields or (accepted is not None and name not in accepted) for name in given):
                allowed = ", ".join(sorted((accepted or set()) - set_by_fields)) or "none by name"
                raise ValueError(f"RunConfig: {field}={given!r} is not accepted; {whose} takes {allowed}.")

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def replace(self, **changes: Any) -> RunConfig:
        """This configuration with some fields changed.

        A field that did not act before and does now has its default, not the neutral value it was set to; so have
        ``rest`` and ``rest_lr`` where they were the old method's own. Options of another method or rest are not
        kept. Of an image folder the content is not looked at again.
        """
        refuse_unknown("RunConfig", changes)
        fields = {name: getattr(self, name) for name in FIELDS}
        if not _known(self.as_dict()):  # a record's, whose code is not here
            return self._recorded({**fields, **changes})
        how = methods[self.method]
        for name in _NEUTRAL.keys() - acting(how, fields):
            del fields[name]
        if fields.get("rest_lr") == how.rest_lr_of(self.rule, self.rest):
            fields["rest_lr"] = None
        if fields.get("rest") == how.rest:
            fields["rest"] = None
        if changes.get("method", self.method) != self.method:
            del fields["options"]
            how = methods.get(changes["method"], how)
        if (changes.get("rest", fields.get("rest")) or how.rest) != self.rest:
            fields.pop("rest_options", None)
        if "dataset" in changes:
            del fields["code"]
        if "epochs" in changes and self.evaluate_at:
            fields["evaluate_at"] = self.evaluate_at[:-1] or (changes["epochs"],)  # the last one is always there
        return RunConfig(**{**fields, **changes})

    def digest(self) -> str:
        """Sixteen hexadecimal digits that name the result: the same exactly if the same is computed.

        Fields at their default are left out, so that a field added later with a default that means "as
        before" leaves every digest as it is. Of an image folder its content counts, not where it lies.
        """
        return digest_of(self, RECIPE)

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain values that JSON can hold."""
        return {name: _plain(getattr(self, name)) for name in FIELDS}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> RunConfig:
        """The inverse of `as_dict`; fields that are missing take their defaults."""
        refuse_unknown("RunConfig", fields, ValueError)
        return cls._recorded(fields) if fields.get("code") or not _known(fields) else cls(**fields)

    @classmethod
    def _recorded(cls, fields: Mapping[str, Any]) -> RunConfig:
        """A configuration as a record holds it: of code that need not be here, or is another by now."""
        missing = [n for n, default in FIELDS.items() if default is dataclasses.MISSING and n not in fields]
        if missing:
            raise ValueError(f"RunConfig: no {', '.join(missing)}")
        config = object.__new__(cls)
        for name, default in _LEFT_OUT.items():  # a field that was not there then
            value = fields.get(name, default)
            value = Options(value) if isinstance(value, Mapping) else value
            config._set(name, tuple(value) if isinstance(value, list) else value)
        for name in ("padding", "flip") if not config.augment else ():  # older records kept what did not act
            config._set(name, _NEUTRAL[name])
        return config

    @property
    def name(self) -> str:
        """Readable and safe as a file name: network, data set, method, seed, digest."""
        return "-".join([self.network, _portable(self.dataset), self.method, f"s{self.seed}", self.digest()])


FIELDS: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(RunConfig)}
"""Every field with its default."""

_TYPES = get_type_hints(RunConfig)
KINDS: dict[str, Kind] = {
    field.name: field.metadata.get("kind") or Name(known=functools.partial(get_args, _TYPES[field.name]))
    for field in dataclasses.fields(RunConfig)
}
"""Every field with what it accepts: what it is declared with, or one of the names of its type."""

# What a digest leaves out: the defaults, and of fields whose default was once another, that one.
_LEFT_OUT = {**FIELDS, "rest": "sgd", "rest_lr": 0.01}


def acting(method: Method, fields: Mapping[str, Any]) -> set[str]:
    """Which of the fields that act only beside others do so in a run of a method with these fields."""
    found = set(method.fields) | {"options"}
    if not fields.get("momentum", True):
        found -= {"nesterov"}
    if method.kind == "rows":
        found |= {"rest", "rest_lr", "rest_options", "weight_decay"}
        if (fields.get("rest") or method.rest) == "sgd":
            found |= {"rest_momentum", "nesterov"} if fields.get("rest_momentum", True) else {"rest_momentum"}
    if method.optimizer is methods["sgd"].optimizer and method.kind == "whole":
        found |= _CONTROLS if fields.get("weight_decay", True) else {"lengths"}
        rows_decay = "decay_on" in found and fields.get("decay_on") != "rest"
        if fields.get("lengths") == "replayed" and not rows_decay:  # the rates are those of the run itself
            found.remove("lengths")
    if fields.get("augment"):
        found |= {"padding", "flip"}
    if fields.get("schedule", "steps") == "steps" and fields.get("drops") and fields.get("drop_factor") != 1:
        found |= {"drops", "drop_factor"}
    return found


def acts(config: RunConfig, name: str) -> bool:
    """Whether a field acts in a run that has the other fields of ``config``."""
    fields = {**config.as_dict(), "drops": config.drops or (1,), "drop_factor": config.drop_factor}
    return name not in _NEUTRAL or name in acting(methods[config.method], fields)


def refuse_idle(caller: str, config: RunConfig, asked: Mapping[str, Any]) -> None:
    """Raise ValueError if a field that was asked for has been set to a neutral value, since it does not act."""
    how = methods.get(config.method)  # None of a record whose code is not here
    idle = _NEUTRAL.keys() - acting(how, config.as_dict()) if how else set()
    for name, value in asked.items():
        if name in idle and KINDS[name].check(name, value) not in (getattr(config, name), None):
            beside = ", ".join(f"{n}={getattr(config, n)!r}" for n in ("method", "momentum", "rest", "schedule"))
            raise ValueError(f"{caller}: {name}={value!r} does not act with {beside}; leave it out.")


def digest_of(config: RunConfig, recipe: int) -> str:
    """`RunConfig.digest` as of a given version of the recipe: what reads records of older ones needs."""
    said = {
        name: value
        for name, value in config.as_dict().items()
        if _LEFT_OUT[name] is dataclasses.MISSING or value != _plain(_LEFT_OUT[name])
    }
    if not config.augment:
        said = {name: value for name, value in said.items() if name not in ("padding", "flip")}
    said |= {name: _one_spelling(said[name]) for name in ("options", "rest_options") if name in said}
    said["dataset"] = _portable(config.dataset)
    text = json.dumps({"recipe": recipe, **said}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _one_spelling(value: Any) -> Any:
    """The same for 1 and 1.0, which are equal."""
    if isinstance(value, dict):
        return {name: _one_spelling(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [_one_spelling(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _code_of(config: RunConfig) -> dict[str, str]:
    """Hashes of what the run uses that is not the package's own."""
    how = methods[config.method]
    used: dict[str, Any] = {
        "method": how.optimizer,
        "network": networks.resolve(config.network)[1],
        "dataset": datasets.get(config.dataset),
    }
    if config.method in methods.added:  # what its entry says is no field of the configuration
        used["method"] = functools.partial(how.optimizer, how.kind, *sorted(how.fields), **how.options)
    found = {what: code_digest(function) for what, function in used.items() if function and is_foreign(function)}
    if used["dataset"] is None:  # a folder
        found["dataset"] = config.code.get("dataset") or content_digest(config.dataset) or ""
    return found


def _known(fields: Mapping[str, Any]) -> bool:
    """Whether method, network and data set are in this process's tables."""
    try:
        networks.check(fields.get("network", ""))
        datasets.check(fields.get("dataset", ""))
    except ValueError:
        return False
    return fields.get("method") in methods


def refuse_unknown(caller: str, names: Iterable[str], error: type[Exception] = TypeError) -> None:
    """Raise an error, TypeError unless another is given, if one of the names is no field's."""
    if unknown := sorted(set(names) - FIELDS.keys()):
        raise error(f"{caller}: no field {', '.join(unknown)}; the fields are {', '.join(FIELDS)}.")


def _portable(dataset: str) -> str:
    kind, _, path = dataset.partition(":")
    return f"{kind}-{path.rstrip('/').rsplit('/', 1)[-1]}" if path else kind


def _plain(value: Any) -> Any:
    if isinstance(value, Options):
        return value.plain()
    return list(value) if isinstance(value, tuple) else value
