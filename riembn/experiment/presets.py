"""The settings of the papers for each cell of their tables, and small relatives of those cells."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from ..methods import methods
from .config import KINDS, RunConfig, acting, refuse_idle, refuse_unknown

_CIFAR_NETWORKS = ("vgg-13", "vgg-19", "wrn-28-10", "wrn-40-10")
_SVHN_NETWORKS = ("vgg-13", "vgg-19", "wrn-16-4", "wrn-22-8")

# The tables of Cho and Lee (2017): data set -> networks. Each has a column for sgd, sgd-g and adam-g; other methods
# at these cells are ours.
PAPER_CELLS = {"cifar10": _CIFAR_NETWORKS, "cifar100": _CIFAR_NETWORKS, "svhn": _SVHN_NETWORKS}

# Yi's (2022, Section 6.2): networks of He et al. on CIFAR. ImageNet's are run from a folder of images.
_YI_NETWORKS = ("resnet-20", "resnet-32", "resnet-44", "resnet-56")
YI_CELLS = {"cifar10": _YI_NETWORKS, "cifar100": _YI_NETWORKS}
YI_IMAGENET = ("resnet-18", "resnet-34", "resnet-50")

# --- what the papers' numbers were made with (TensorFlow release of Cho and Lee) ----------------------

_METHOD_SETTINGS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.1},
    "sgd-g": {"lr": 0.2, "rest_lr": 0.01, "grad_clip": 0.1, "alpha": 0.1},
    "adam-g": {"lr": 0.05, "rest_lr": 0.01, "grad_clip": 0.1, "alpha": 0.1, "beta2": 0.99},
    # Yi (2022), Section 6.2: 0.1 with momentum 0.9, 1.0 without. Measured invariance, because PSI-SGD lets a row's
    # length drift and may only act where length has no meaning.
    "psi-sgd": {"lr": 0.1, "rule": "invariant"},
}

_EVERYWHERE: dict[str, Any] = {
    "rule": "paper",
    "batch_size": 128,
    "momentum": 0.9,
    "rest_momentum": 0.9,
    "weight_decay": 5e-4,
    "bn_decay": 0.99,
}

_CIFAR: dict[str, Any] = {
    "epochs": 200,
    "drops": (60, 120, 160),
    "drop_factor": 0.2,
    "augment": True,
    "pixels": "standardize",
}

_SVHN: dict[str, Any] = {
    "epochs": 160,
    "drops": (60, 120),
    "drop_factor": 0.1,
    "augment": False,
    "pixels": "unit",
}
_SVHN_RATE_DIVISOR = 10  # every rate of SVHN is a tenth of CIFAR's

# Without a regularizer, as Yi's Table 1; his Table 2 has weight_decay=5e-4.
_YI: dict[str, Any] = {**_CIFAR, "rule": "invariant", "weight_decay": 0.0}
_IMAGENET: dict[str, Any] = {"epochs": 100, "drops": (30, 60, 90)}

_WRN_DROPOUT = {"cifar10": 0.3, "cifar100": 0.3, "svhn": 0.4}


# --- the small relatives: ours, sized by measured speed, not a paper's ------------------------------------


@dataclass(frozen=True)
class Profile:
    """A size at which a cell can be run: which data set stands in, which networks, and for how long."""

    stand_in: str
    networks: dict[str, tuple[str, float]]  # of each family its small member and width
    settings: dict[str, Any]


PROFILES = {
    # Two cores, minutes a run.
    "laptop": Profile(
        stand_in="fashion-mnist",
        networks={"vgg-": ("vgg-11", 0.25), "wrn-": ("wrn-10-1", 1.0)},
        settings={
            "train_size": 10_000,
            "epochs": 12,
            "drops": (4, 7, 10),  # where the papers' 60, 120 and 160 of 200 epochs would be, nearly
            "drop_factor": 0.2,
            "augment": True,
            "pixels": "standardize",
            "bn_decay": 0.9,  # a run is a few hundred steps: an average over a hundred would lag behind
        },
    ),
    # Seconds a run, and no data beyond what scikit-learn brings.
    "smoke": Profile(
        stand_in="digits",
        networks={"vgg-": ("vgg-11", 0.125), "wrn-": ("wrn-10-1", 0.5)},
        settings={
            "train_size": None,
            "epochs": 4,
            "drops": (2, 3),
            "drop_factor": 0.2,
            "augment": False,  # a flipped digit is another sign
            "pixels": "standardize",
            "batch_size": 64,
            "bn_decay": 0.8,
        },
    ),
}
_SMALL_DATASETS = tuple(profile.stand_in for profile in PROFILES.values())


def preset(name: str, profile: Literal["smoke", "laptop", "paper"] = "smoke", **overrides: Any) -> RunConfig:
    """The configuration of one cell of the papers' tables, or of its small relative.

    With ``profile="paper"``: everything as in the TensorFlow release that made the papers' numbers. The other
    profiles keep the method's settings and shrink the rest: the network to the smallest of its family, the
    data to Fashion-MNIST (``laptop``) or scikit-learn's digits (``smoke``), the epochs to minutes or seconds.

    Args:
        name: ``NETWORK/DATASET/METHOD``, e.g. ``wrn-28-10/cifar10/sgd-g``. Small profiles also take
            ``fashion-mnist`` and ``digits``, and any VGG or WRN.
        profile: ``smoke``, ``laptop`` or ``paper``.
        overrides: Fields of `RunConfig`, which win over the preset. When ``epochs`` is given without
            ``drops``, the drops move in proportion.

    Raises:
        ValueError, TypeError: In one line: what was given, what is accepted.

    Source: github.com/MinhyungCho/riemannian-batch-normalization, for Cho and Lee's cells of sgd, sgd-g and adam-g; Yi
    (2022), Section 6.2 and supplement, Table 3, for those of the ResNets, which are without a regularizer unless
    ``weight_decay`` is given, as in Table 1 (Table 2: 5e-4), and at PSI-SGD's rate with momentum (without:
    ``lr=1.0, momentum=0.0``).
    """
    parts = re.fullmatch(r"([^/]+)/(.+)/([^/]+)", name) if isinstance(name, str) else None
    if parts is None or ("/" in parts[2] and ":" not in parts[2]):  # imagefolder:PATH has slashes of its own
        raise ValueError(
            f"preset: {name!r} is no preset; give NETWORK/DATASET/METHOD: wrn-28-10/cifar10/sgd-g."
        )
    network, dataset, method = parts.groups()
    if method not in methods:
        raise ValueError(f"preset: unknown method {method!r} in {name!r}; give one of {', '.join(methods)}.")
    refuse_unknown("preset", overrides)
    settings = {"network": network, "dataset": dataset, "method": method, **_EVERYWHERE}
    if profile == "paper":
        settings |= _paper(name, network, dataset, method)
    elif profile in PROFILES:
        RunConfig(network=network, dataset=dataset, method=method, epochs=1, lr=1.0)  # refuses what is to be shrunk too
        settings |= _small(PROFILES[profile], network, dataset, method)
    else:
        raise ValueError(f"preset: unknown profile {profile!r}; give smoke, laptop or paper.")
    if "epochs" in overrides and "drops" not in overrides:
        epochs = KINDS["epochs"].check("epochs", overrides["epochs"])
        settings["drops"] = _moved(settings["drops"], settings["epochs"], epochs)
    made = RunConfig(**{**settings, **overrides})
    refuse_idle("preset", made, {name: v for name, v in overrides.items() if name not in ("drops", "drop_factor")})
    return made


def _paper(name: str, network: str, dataset: str, method: str) -> dict[str, Any]:
    if network in YI_CELLS.get(dataset, ()) or (network in YI_IMAGENET and dataset.startswith("imagefolder:")):
        settings = {**method_settings(method, dataset), **_YI, **({} if dataset in YI_CELLS else _IMAGENET)}
        if methods[method].kind == "rows":
            settings["rest_lr"] = 0.1
        return settings
    if network not in PAPER_CELLS.get(dataset, ()):
        known = {data: (*networks, *YI_CELLS.get(data, ())) for data, networks in PAPER_CELLS.items()}
        known["imagefolder:PATH"] = YI_IMAGENET
        cells = "; ".join(f"{data}: {', '.join(networks)}" for data, networks in known.items())
        raise ValueError(f"preset: no cell of the papers is called {name!r}; profile='paper' has {cells}.")
    settings = {**(_SVHN if dataset == "svhn" else _CIFAR), **method_settings(method, dataset)}
    if network.startswith("wrn"):
        settings["dropout"] = _WRN_DROPOUT[dataset]
    return settings


def method_settings(method: str, dataset: str) -> dict[str, Any]:
    """The fields of a configuration that its authors chose for a method on a data set; of others its defaults."""
    how = methods[method]
    settings = dict(_METHOD_SETTINGS.get(method, {"lr": how.lr, "rule": "invariant"}))
    acts = acting(how, _EVERYWHERE)
    settings = {**{n: v for n, v in _EVERYWHERE.items() if n in acts | {"rule", "momentum"}}, **settings}
    settings.pop("weight_decay", None)
    if dataset == "svhn":
        for rate in {"lr", "rest_lr"} & settings.keys():
            settings[rate] /= _SVHN_RATE_DIVISOR
    return settings


def _small(profile: Profile, network: str, dataset: str, method: str) -> dict[str, Any]:
    settings = {**method_settings(method, "small"), **profile.settings}
    # Only the papers' families shrink; a network of somebody's own is meant as it is, and so is a data set.
    for family, (small, width) in profile.networks.items():
        if network.startswith(family):
            settings |= {"network": small, "width": width}
    # A preset that names a small data set means it, when the profile's data set is not a smaller one.
    if dataset in PAPER_CELLS or (dataset in _SMALL_DATASETS and profile.stand_in == "digits"):
        settings["dataset"] = dataset = profile.stand_in
    if dataset not in (*PAPER_CELLS, *_SMALL_DATASETS):
        settings["train_size"] = None
    return settings


def _moved(drops: tuple[int, ...], before: int, after: int) -> tuple[int, ...]:
    """The drops of a schedule stretched or shrunk to another number of epochs."""
    return tuple(sorted({round(drop * after / before) for drop in drops} & set(range(1, after))))
