"""The book's experiments: each a few studies, sized by what they have to decide.

Most are small: VGG-11 an eighth as wide, Fashion-MNIST, one kind of CPU. Blocks G and L have networks of the papers as
they stand, and ran on one GPU. Where rates are tuned, every method has the same number of tries on the same held-out
images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch

from .. import models
from ..experiment.config import RunConfig
from ..experiment.presets import preset
from .settings import TUNING_SEEDS
from .study import Study

METHODS = ("sgd", "sgd-g", "adam-g", "psi-sgd")
SEEDS = range(10)
# Blocks C and E were looked at with six and with ten seeds, which left their claims undecided. Then they got as many
# again. Block L was looked at when SGD and SGD-G had four of its six seeds; A and A2 before their last tries, and A
# with five rates; R with five and six tries a method and five seeds; B when rates alone had been tuned, with six seeds,
# and twice before its last tries. Block M's Rotational had been seen with six tries. P-values allow for that.
AGAIN: dict[str, dict[str, Any]] = {
    "A": {"looks": 3},
    "A2": {"looks": 2},
    "R": {"looks": 3},
    "C": {"seeds": range(12), "looks": 2},
    "E": {"seeds": range(20), "looks": 2},
    "L": {"seeds": range(6), "looks": 2},
    "B": {"seeds": range(12), "looks": 5},
    "M": {"seeds": range(12), "looks": 2},
}
# Channels, height and width of the images, and how many train.
_IMAGES = {
    "digits": (1, 8, 1_437),
    "fashion-mnist": (1, 28, 60_000),
    "cifar10": (3, 32, 50_000),
    "cifar10-jpeg": (3, 32, 50_000),
    "svhn": (3, 32, 604_388),
}


def _halved(last: float, count: int) -> tuple[float, ...]:
    """Rates up to the last, each twice the one before."""
    return tuple(last / 2**times for times in reversed(range(count)))


def _each(rates: Iterable[float], **fields: float) -> list[dict[str, float]]:
    """A try a rate, other fields being the same."""
    return [{"lr": lr, **fields} for lr in rates]


def _varied(tries: list[dict[str, float]], rest_lr: Iterable[float], at: float) -> list[dict[str, float]]:
    """Tries at several rates of the rest, and at one of these with more decay, which acts on the rest alone."""
    more = [{"rest_lr": rate} for rate in rest_lr]
    more += [{"rest_lr": at, "weight_decay": decay} for decay in (2e-3, 8e-3)]
    return [{**one, **fields} for fields in more for one in tries]


# The first five, or the last, were tried first. Where a method was best at an end of them, all methods got a sixth.
_RATES = _halved(0.8, 6)
_RATES_ADAM = _halved(0.4, 6)
_REST = (0.01, 0.1)
# PSI-SGD's are those of its paper, 0.1 with momentum and 1.0 without, and four more.
_PSI: list[dict[str, float]] = [*_each(_halved(0.4, 5)), {"lr": 1.0, "momentum": 0.0}]
# Rate times decay sets the balance of lengths, so SGD's best rate falls as its decay grows, and its rates with it.
_BY_DECAY = {5e-4: 0.8, 2e-3: 0.8, 8e-3: 0.4, 3.2e-2: 0.1, 0.128: 0.025}
_TRIES: dict[str, Any] = {
    "sgd": [one for decay, last in _BY_DECAY.items() for one in _each(_halved(last, 6), weight_decay=decay)],
    "sgd-g": _varied(_each(_RATES), (0.0025, *_REST), at=0.01),
    "adam-g": _varied(_each(_RATES_ADAM), (0.0025, *_REST), at=0.01),
    "psi-sgd": _varied(_PSI, (0.0025, *_REST), at=0.01),
}
_BY_DECAY_COLOR = {5e-4: 0.8, 2e-3: 0.8, 8e-3: 0.8, 3.2e-2: 0.2, 0.128: 0.05}
_REST_COLOR = (*_REST, 0.4)
_TRIES_COLOR: dict[str, Any] = {
    "sgd": [one for decay, last in _BY_DECAY_COLOR.items() for one in _each(_halved(last, 7), weight_decay=decay)],
    "sgd-g": _varied(_each(_halved(0.8, 7)), _REST_COLOR, at=0.1),
    "adam-g": _varied(_each(_halved(0.2, 7)), _REST_COLOR, at=0.1),
    "psi-sgd": _varied([*_each([0.0125]), *_PSI], _REST_COLOR, at=0.4),
}
_RATES_ALONE: dict[str, Any] = {
    "sgd": {"lr": _RATES}, "sgd-g": {"lr": _RATES}, "adam-g": {"lr": _RATES_ADAM}, "psi-sgd": _PSI,
}  # fmt: skip
_PAPER = {name: {"alpha": 0.1} for name in ("sgd-g", "adam-g")}
_PAPER_REST = {name: {"alpha": 0.1, "rest_lr": 0.1} for name in _PAPER}
# Where the rate is the angle of a step, radians, they lie around that of SGD-G; elsewhere around the source's.
_RELATIVES = {
    "pbwn": _RATES,
    "oblique-sgd": _RATES,
    "nero": (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08),
    "muon-rows": (0.015, 0.03, 0.06, 0.12, 0.24, 0.48),
    "hyperball-sgd": (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08),
    "rotational-sgd": (0.05, 0.1, 0.2, 0.4, 0.8, 1.6),
    "sgdp": _RATES,
    "lars": (0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
}
# Muon's rate times its decay sets the angle at which its lengths balance.
_MUON_BY_DECAY = {0.0: 3.84, 0.03: 1.92, 0.1: 0.48, 0.3: 0.24, 1.0: 0.06}
# SGDP has a decay of its own, of which a tenth acts where it projects; the first is its release's.
_SGDP_BY_DECAY = {1e-5: 0.8, 5e-3: 0.8, 2e-2: 0.8, 8e-2: 0.4, 0.32: 0.1}


def cell(**fields: object) -> RunConfig:
    """The book's cell: VGG-11 × 0.125 on 10,000 images of Fashion-MNIST, 12 epochs, rows by measurement."""
    common = {"width": 0.125, "rule": "invariant", "evaluate_at": (4, 8, 12)}
    return preset("vgg-11/fashion-mnist/sgd", profile="laptop", **{**common, **fields})


def ends() -> list[Study]:
    """Block A (C1, C2, C3, P3): test error and clean training loss at the end, each method tuned alike."""
    return [Study(cell(), methods=METHODS, settings=_PAPER, baseline="sgd", seeds=SEEDS, tune=_TRIES, **AGAIN["A"])]


def ends_without_decay() -> list[Study]:
    """Block A0 (P3): block A without any decay, SGD beside PSI-SGD, six tries each."""
    return [
        Study(
            cell(weight_decay=0.0),
            methods=("sgd", "psi-sgd"),
            settings={"psi-sgd": {"rest_lr": 0.1}},
            baseline="sgd",
            seeds=SEEDS,
            tune={"sgd": {"lr": _RATES}, "psi-sgd": _PSI},
        ),
    ]


def split_rates() -> list[Study]:
    """Block A2 (controls of C1): plain SGD with a second rate for the rest, tuned like block A; SGD-G at SGD's angle.

    The angle is SGD's at its tuned setting, in the epoch before the first drop; a pilot on three other seeds met it.
    """
    tries = {"sgd": _TRIES["sgd"], "sgd-split": [one | {"rest_lr": r} for one in _each(_RATES) for r in _REST]}
    tries["sgd-split"] += [{**one, "rest_lr": 0.1} for one in _TRIES["sgd"] if 5e-4 < one["weight_decay"] < 0.1]
    matched = {"sgd-g": {"lr": 0.22, "rest_lr": 0.01, "alpha": 0.1, "weight_decay": 5e-4}}
    tuned = cell(lr=0.025, weight_decay=3.2e-2)
    return [
        Study(cell(), methods=("sgd", "sgd-split"), baseline="sgd", seeds=SEEDS, tune=tries, **AGAIN["A2"]),
        Study(tuned, methods=("sgd", "sgd-g"), settings=matched, baseline="sgd", seeds=SEEDS, **AGAIN["A2"]),
    ]


def second_cell() -> list[Study]:
    """Block B (C1, C2, C3, P3): block A on color images, CIFAR-10 from JPEG files; 35 tries each, twelve seeds.

    It grew by looks at it. SGD and PSI-SGD were best at the lowest of five rates, so each method got two lower ones.
    Then, beside the rate, came what block A tunes; then six more seeds; then a third decay of SGD and a third rate of
    the rest for the others; last two more decays for SGD, and two of the rest for the others.
    """
    return _tuned_alike(cell(dataset="cifar10-jpeg"), tune=_TRIES_COLOR, **AGAIN["B"])


def each_decay() -> list[Study]:
    """Block B2 (a control of B): SGD at block B's other decays, each at the rate that the held-out images choose."""
    chosen = {5e-4: 0.05, 2e-3: 0.1, 8e-3: 0.05, 3.2e-2: 0.025}
    base, seeds = cell(dataset="cifar10-jpeg"), AGAIN["B"]["seeds"]
    return [Study(base.replace(weight_decay=decay, lr=lr), seeds=seeds) for decay, lr in chosen.items()]


def _tuned_alike(base: RunConfig, **changes: Any) -> list[Study]:
    """Each method at its best rate of five, or of the tries given, on the seeds given; else with block A's settings."""
    rates = {"sgd": _RATES[1:], "sgd-g": _RATES[1:], "adam-g": _RATES_ADAM[:5]}
    asked: dict[str, Any] = {
        "methods": METHODS,
        "settings": {**_PAPER_REST, "psi-sgd": {"rest_lr": 0.1}},
        "baseline": "sgd",
        "seeds": range(6),
        "tune": {**{name: {"lr": values} for name, values in rates.items()}, "psi-sgd": _PSI[1:]},
    }
    return [Study(base, **{**asked, **changes})]


def early() -> list[Study]:
    """Block A3 (P2, C3): clean training loss after four epochs, at a constant rate tuned for it."""
    return [
        Study(
            cell(epochs=4, drops=(), evaluate_at=(4,)),
            methods=METHODS,
            settings=_PAPER,
            baseline="sgd",
            seeds=SEEDS,
            tune=_RATES_ALONE,
            tune_by="clean_loss",
        )
    ]


def plateaus() -> list[Study]:
    """Block C (C4): one drop, long after it; SGD, SGD with lengths frozen at the drop, and methods at equal angles.

    The rates of SGD-G and Adam-G are those at which a pilot turned by SGD's angle in the epoch before the drop.
    """
    base = cell(
        train_size=30_000, epochs=12, drops=(4,), drop_factor=0.2, weight_decay=2e-3, lr=0.1, evaluate_at=(4, 12)
    )
    angle_matched = {"sgd-g": {"lr": 0.25}, "adam-g": {"lr": 0.08}}
    return [
        Study(base, vary={"lengths": ["free", "frozen"]}, baseline={"lengths": "free"}, **AGAIN["C"]),
        Study(base, methods=("sgd", *angle_matched), settings=angle_matched, baseline="sgd", **AGAIN["C"]),
    ]


def balance() -> list[Study]:
    """Block D (C8): the angle of SGD at balance against its prediction, and what decay does beyond the rate."""
    law = [
        Study(
            cell(lr=lr, weight_decay=decay, drops=(), evaluate_at=(epochs,), epochs=epochs),
            vary={"nesterov": [True, False]},
            baseline={"nesterov": True},
            seeds=range(6),
        )
        # After the first epoch gradients fall tenfold, and lengths follow them at the rate of decay alone: it takes
        # eight time constants or more of (1 - a)/(4 lr decay), which are 125, 63, 50 and 100 steps of 78 an epoch.
        for lr, decay, epochs in ((0.1, 2e-3, 24), (0.2, 2e-3, 16), (0.1, 5e-3, 12), (0.05, 5e-3, 20))
    ]
    return [
        *law,
        Study(cell(weight_decay=2e-3), vary={"decay_on": ["all", "invariant", "rest"]}, seeds=range(8)),
        Study(cell(weight_decay=2e-3), vary={"lengths": ["free", "replayed"]}, seeds=range(8)),
    ]


def starts() -> list[Study]:
    """Block F (C7, P1): the same function at other row lengths, and a start that is 1e-6 off as the floor of chaos."""
    settings = {"sgd-g": {"lr": 0.2}, "adam-g": {"lr": 0.05}, "psi-sgd": {"lr": 0.1}}
    return [
        Study(
            cell(epochs=6, evaluate_at=(6,), **start),
            methods=METHODS,
            settings=settings,
            baseline="sgd",
            seeds=range(6),
        )
        for start in ({}, {"row_scale": 3}, {"start_noise": 1e-6})
    ]


def ablations() -> list[Study]:
    """Block E (C5, C6): no clipping, and no L^O, each tuned by itself, against both at the release's values."""
    base = cell(method="sgd-g", lr=0.2, alpha=0.1, rest_lr=0.1)
    rates = {name: _RATES_ALONE[name] for name in _PAPER}
    asked: dict[str, Any] = {"methods": list(_PAPER), "tune": rates, **AGAIN["E"]}
    return [
        Study(base, vary={"grad_clip": [0.1, None]}, baseline={"grad_clip": 0.1}, **asked),
        Study(base, vary={"alpha": [0.1, 0.0]}, baseline={"alpha": 0.0}, **asked),
    ]


def around() -> list[Study]:
    """Block E2 (C5, C6): other values of ν and α at the rates tuned for the release's; no bound at four times them."""
    base = cell(method="sgd-g", lr=0.1, alpha=0.1, rest_lr=0.1, grad_clip=0.1)
    asked: dict[str, Any] = {"methods": ("sgd-g", "adam-g"), "seeds": range(5)}
    tuned = {"settings": {"adam-g": {"lr": 0.05}}, **asked}  # what block E's tuning chose at the release's values
    high = {"settings": {"sgd-g": {"lr": 0.4}, "adam-g": {"lr": 0.2}}, **asked}
    return [
        Study(base, vary={"grad_clip": [0.03, 0.1, 0.3, 1.0]}, baseline={"grad_clip": 0.1}, **tuned),
        Study(base, vary={"alpha": [0.01, 0.1, 0.3, 1.0]}, baseline={"alpha": 0.1}, **tuned),
        Study(base, vary={"grad_clip": [0.1, None]}, baseline={"grad_clip": 0.1}, **high),
    ]


def relatives() -> list[Study]:
    """Block R: what others have made of the same rows, beside block A's methods; 30 tries each, ten seeds.

    Five rates were tried first, then a sixth, at one rate and one decay of the rest. Then each got as many tries as
    block A's methods have: for SGDP over its own decay, for the others over the rest's rate and decay.
    """
    tune: dict[str, Any] = {name: _varied(_each(to), (0.0025, *_REST), at=0.01) for name, to in _RELATIVES.items()}
    tune["sgdp"] = [
        {"lr": lr, "rest_lr": 0.1, "options": {"weight_decay": decay}}
        for decay, last in _SGDP_BY_DECAY.items()
        for lr in _halved(last, 6)
    ]
    return [
        Study(
            cell(),
            methods=(*METHODS, *_RELATIVES),
            settings=_PAPER,
            baseline="sgd",
            seeds=SEEDS,
            tune={**_TRIES, **tune},
            **AGAIN["R"],
        )
    ]


def evenness() -> list[Study]:
    """Block V (C5, C6): does a method end lower because its rows turn by angles that are nearly equal?

    That the angles of the methods with the lowest errors are, was seen in the records of blocks A, B and R. It was
    foretold from them, before these runs, that of SGD-G without L^O the error falls with the threshold, which evens the
    angles; and that on color images Rotational SGD, which turns all rows alike, ends near SGD-G, and Oblique SGD, a
    Riemannian method without a bound, near SGD at its usual decay. Known by then were the runs with the threshold 0.1,
    which are block E's without L^O, but for the rate 1.6.
    """
    bare, color = cell(method="sgd-g", alpha=0.0, rest_lr=0.1), cell(dataset="cifar10-jpeg")
    others = ("rotational-sgd", "oblique-sgd")
    return [
        Study(
            bare,
            vary={"grad_clip": [None, 0.1, 0.03]},
            baseline={"grad_clip": None},
            seeds=SEEDS,
            tune={"sgd-g": {"lr": (*_RATES, 1.6)}},
        ),
        Study(
            color,
            methods=others,
            settings={name: {"rest_lr": 0.1} for name in others},
            baseline="oblique-sgd",
            seeds=range(6),
            tune={name: {"lr": _RELATIVES[name]} for name in others},
        ),
    ]


def orthogonal_steps() -> list[Study]:
    """Block M: is Muon rows ahead by its orthogonal steps or by its lengths, and is it ahead on color images too?

    In block R it was the first of twelve. The tries of that block are shared. One control takes steps that are as long
    and not orthogonal; the other leaves lengths free and tunes their decay, with the rest as Muon rows' tuning chose
    it. Foretold before these runs: without orthogonal steps the lead is gone; with free lengths it is not, since decay
    balances them; and on color images, in block B's cell with its tries, Muon rows is ahead of SGD.
    """
    rest, color = {"rest_lr": 0.01, "weight_decay": 2e-3}, ("muon-rows", "rotational-sgd")
    tries = _varied(_each(_RELATIVES["muon-rows"]), (0.0025, *_REST), at=0.01)
    free = [
        {"lr": lr, "options": {"momentum": 0.6, "steps": 3, "weight_decay": decay}}
        for decay, last in _MUON_BY_DECAY.items()
        for lr in _halved(last, 6)
    ]
    tune = {name: _varied(_each(_halved(_RELATIVES[name][-1], 7)), _REST_COLOR, at=0.1) for name in color}
    return [
        Study(
            cell(method="muon-rows"),
            vary={"options": [{}, {"steps": 0}]},
            baseline={"options": {}},
            seeds=SEEDS,
            tune={"muon-rows": tries},
        ),
        Study(
            cell(),
            methods=("muon-rows", "muon"),
            settings={"muon": rest},
            baseline="muon-rows",
            seeds=SEEDS,
            tune={"muon-rows": tries, "muon": free},
        ),
        Study(
            cell(dataset="cifar10-jpeg"),
            methods=("sgd", *color),
            baseline="sgd",
            tune={"sgd": _TRIES_COLOR["sgd"], **tune},
            **AGAIN["M"],
        ),
    ]


def residual_networks() -> list[Study]:
    """Block G (P2, P3): a network of Yi's tables on a part of its images, sources' rates, without and with decay."""
    part: dict[str, Any] = {"network": "resnet-20", "width": 1.0, "dataset": "cifar10-jpeg"}
    methods, studies = ("sgd", "adam", "sgd-g", "psi-sgd"), []
    for weight_decay in (0.0, 5e-4):
        base = cell(**part, epochs=15, drops=(5, 9, 12), evaluate_at=(5, 10, 15), weight_decay=weight_decay)
        plain = base.replace(method="psi-sgd", lr=1.0, momentum=0.0)
        studies += [Study(base, methods=methods, baseline="sgd", seeds=range(5)), Study(plain, seeds=range(5))]
    return studies


def whole_network() -> list[Study]:
    """Block L (C1 to C4, P3): a network of Cho and Lee's table, all images, 16 epochs; five rates each, six seeds."""
    base = cell(
        network="vgg-13", width=1.0, dataset="cifar10-jpeg", train_size=None, precision="bfloat16",
        epochs=16, drops=(5, 10, 13), evaluate_at=(5, 10, 16),
    )  # fmt: skip
    return _tuned_alike(base, tune_seeds=TUNING_SEEDS[:1], **AGAIN["L"])


def rest_rates() -> list[Study]:
    """Block H (the defaults): two rates of what is not on the sphere, on held-out images, beside SGD and AdamW.

    A network without shortcuts, one with normalizations before its convolutions and one with normalizations behind
    them; on digits the last two. Every method at its default rate. On digits, where an image is a third of a percent,
    three seeds could not tell the methods apart, and there are ten.
    """
    rows: dict[str, Any] = {"methods": ("sgd-g", "adam-g", "psi-sgd"), "vary": {"rest_lr": [0.01, 0.1]}}
    bases = []
    for network, width, epochs in (("vgg-11", 0.125, 12), ("wrn-10-1", 1.0, 3), ("resnet-20", 0.5, 4)):
        drops = (4, 7, 10) if epochs == 12 else (epochs - 2, epochs - 1)
        common = {"width": width, "epochs": epochs, "drops": drops, "evaluate_at": (epochs,), "holdout": 5000}
        bases.append(preset(f"{network}/fashion-mnist/sgd", profile="laptop", rule="invariant", **common))
    for network in ("wrn-10-1", "resnet-20"):
        common = {"width": 0.5, "epochs": 20, "drops": (8, 12, 16), "evaluate_at": (20,), "holdout": 300}
        bases.append(preset(f"{network}/digits/sgd", profile="smoke", rule="invariant", **common))
    whole: dict[str, Any] = {"methods": ("sgd", "adamw"), "baseline": "sgd"}
    studies = []
    for base in bases:
        # The VGG's cell is that of other blocks, whose tuning has the seeds 100 and 101.
        first, count = 110 if base.network == "vgg-11" else 100, 10 if base.dataset == "digits" else 3
        studies += [Study(base, seeds=range(first, first + count), **asked) for asked in (whole, rows)]
    return studies


DESIGNS: dict[str, Callable[[], list[Study]]] = {
    "A": ends,
    "A3": early,
    "C": plateaus,
    "D": balance,
    "F": starts,
    "E": ablations,
    "E2": around,
    "A0": ends_without_decay,
    "R": relatives,
    "V": evenness,
    "M": orthogonal_steps,
    "H": rest_rates,
    "A2": split_rates,
    "B": second_cell,
    "B2": each_decay,
    "G": residual_networks,
    "L": whole_network,
}
"""Each experiment by its letter, in the order in which they are worth running."""


def core_hours(configs: Iterable[RunConfig]) -> float:
    """Hours that runs of the designs take on one quiet core; a busy or an older one takes up to twice as long."""
    seconds = 0.0
    for one in configs:
        images = one.train_size or _IMAGES[one.dataset][2] - one.holdout
        seconds += one.epochs * (images // one.batch_size) * step_seconds(one.network, one.width, one.dataset)
    return seconds / 3600


@cache
def step_seconds(network: str, width: float, dataset: str) -> float:
    """Seconds of a training step of 128 images on one core that has nothing else to do.

    A straight line through the steps that were measured, from 1.5 (VGG-11 × 0.125 on Fashion-MNIST: 21 ms) to 27
    million multiplications an image (WRN-16-1 on 32 × 32 pixels: 225 ms); it is off by up to 16 % at the seven.
    """
    channels, size, _ = _IMAGES[dataset]
    with torch.device("meta"):
        model = models.build(network, num_classes=10, in_channels=channels, width=width).eval()
        count = models.multiplications(model, torch.empty(1, channels, size, size))[""]
    return 0.008 + 0.0085e-6 * count
