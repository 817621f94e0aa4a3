"""The table of methods: which optimizer each has, with which settings, and what goes to it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.optim.optimizer import Optimizer

from .open_table import OpenTable
from .optim import PSISGD, SGDG, AdamG, relatives

RestName = Literal["sgd", "adam", "adamw"]
MethodName = Literal[
    "sgd", "adam", "adamw", "sgd-g", "adam-g", "psi-sgd", "sgd-split", "pbwn", "oblique-sgd", "oblique-adam", "nero",
    "muon", "muon-rows", "hyperball-sgd", "adam-h", "rotational-sgd", "rotational-adamw", "sgdp", "adamp",
    "radial-brake", "adam-srt", "lars", "cayley-sgd",
]  # fmt: skip
"""The package's own methods, for editors to complete; `methods` may hold more."""

REST: dict[str, type[Optimizer]] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
"""What the parameters off the manifold can go to, by name."""

SHARED = ("foreach", "fused", "maximize")
"""Options that every optimizer here has; those of a method hold for its rest too."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """How a network is trained: which optimizer gets which parameters, with which settings.

    Args:
        optimizer: Called as ``optimizer(groups, lr=…, **options)`` with param groups; returns an optimizer.
        lr: Its learning rate where none is given.
        options: Its other settings where none are given.
        kind: "rows": it gets the scale-invariant weights, whose groups say how they lie (``row_dim``,
            ``conv_groups``, ``channels_per_row``; see `riembn.geometry.rows`), and all else goes to ``rest``.
            "whole": it gets all parameters.
        rest: What the other parameters go to: "sgd" (Nesterov momentum), "adam" or "adamw".
        rest_lr: Learning rate of the rest; None for `rest_lr_of`.
        fields: Which fields of `riembn.RunConfig` set options of the optimizer: ``momentum``, ``beta2`` (then
            both are its ``betas``), ``grad_clip``, ``alpha``, ``weight_decay``, ``nesterov``. The others
            are set by ``RunConfig.options``.
        lr_without_momentum: The learning rate where none is given and ``momentum`` is 0.
    """

    optimizer: Callable[..., Optimizer]
    lr: float
    options: Mapping[str, Any] = field(default_factory=dict)
    kind: Literal["rows", "whole"] = "rows"
    rest: str = "sgd"
    rest_lr: float | None = None
    fields: frozenset[str] = frozenset()
    lr_without_momentum: float | None = None

    def __post_init__(self) -> None:
        if not callable(self.optimizer):
            raise TypeError(f"Method: optimizer={self.optimizer!r} is not callable; give a torch optimizer's class.")
        if isinstance(self.lr, bool) or not isinstance(self.lr, int | float) or not self.lr > 0:
            raise ValueError(f"Method: lr={self.lr!r} is not accepted; give a number above 0.")
        if self.kind not in ("rows", "whole"):
            raise ValueError(f"Method: kind={self.kind!r} is not accepted; give 'rows' or 'whole'.")
        if self.rest not in REST:
            raise ValueError(f"Method: rest={self.rest!r} is not accepted; give one of {', '.join(map(repr, REST))}.")
        object.__setattr__(self, "options", dict(self.options))
        object.__setattr__(self, "fields", frozenset(self.fields))

    def accepts(self) -> set[str] | None:
        """Names of the options that the optimizer takes; None if it takes any."""
        parameters = _parameters_of(self.optimizer).values()
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            return None
        return {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - {"params"}

    def defaults(self) -> dict[str, Any]:
        """The options that hold where none are given."""
        return {**defaults_of(self.optimizer), **self.options}

    def rest_lr_of(self, rule: str, rest: str | None = None) -> float:
        """Learning rate of the rest where none is given: SGD's own, but the authors' few parameters have theirs.

        By the measured rule the rest can be most of a network (67 % of the weights of a pre-activation WRN), and
        trains at SGD's rate, 0.1; by the rule of the authors' release it is a few, trained at 0.01.
        """
        rest = rest or self.rest
        if self.rest_lr is not None and rest == self.rest:
            return self.rest_lr
        if rest != "sgd":
            return 1e-3  # torch's default of adam and adamw
        return 0.01 if rule == "paper" else 0.1


def defaults_of(optimizer: Callable[..., Optimizer]) -> dict[str, Any]:
    """The defaults in a signature."""
    return {name: p.default for name, p in _parameters_of(optimizer).items() if p.default is not p.empty}


@functools.cache
def _parameters_of(optimizer: Callable[..., Optimizer]) -> Mapping[str, inspect.Parameter]:
    """What an optimizer takes; to look at its signature is most of what a configuration costs."""
    return inspect.signature(optimizer).parameters


_ROWS = frozenset({"momentum", "grad_clip", "alpha"})
_MOMENTUM = frozenset({"momentum"})

# The book's baseline, on all parameters or on both parts.
_SGD: dict[str, Any] = dict(
    optimizer=torch.optim.SGD,
    lr=0.1,
    options=dict(momentum=0.9, nesterov=True, weight_decay=5e-4),
    fields=frozenset({"momentum", "nesterov", "weight_decay"}),
)

# What others have made of the same rows, at the values of their sources; where a source leaves a value to its user
# (a rate of LARS, of the brake, of Hyperball by SGD), this project's. The momentum of all with that field is 0.9.
_RELATIVES = {
    "pbwn": Method(optimizer=relatives.PBWN, lr=0.1, fields=_MOMENTUM),
    "oblique-sgd": Method(optimizer=relatives.ObliqueSGD, lr=1e-3, fields=_MOMENTUM),
    "oblique-adam": Method(optimizer=relatives.ObliqueAdam, lr=1e-3),
    "nero": Method(optimizer=relatives.Nero, lr=0.01),
    "muon": Method(optimizer=relatives.Muon, lr=1e-3),
    "muon-rows": Method(optimizer=relatives.MuonRows, lr=0.24),
    "hyperball-sgd": Method(optimizer=relatives.HyperballSGD, lr=0.02, fields=_MOMENTUM),
    "adam-h": Method(optimizer=relatives.AdamH, lr=0.018),
    "rotational-sgd": Method(optimizer=relatives.RotationalSGD, lr=0.1, fields=_MOMENTUM),
    "rotational-adamw": Method(optimizer=relatives.RotationalAdamW, lr=1e-3),
    "sgdp": Method(
        optimizer=relatives.SGDP,
        lr=0.1,
        options=dict(momentum=0.9, nesterov=True, weight_decay=1e-5),
        fields=_MOMENTUM,
    ),
    "adamp": Method(optimizer=relatives.AdamP, lr=1e-3, options=dict(weight_decay=1e-2)),
    "radial-brake": Method(optimizer=relatives.RadialBrakeSGD, lr=0.1, fields=_MOMENTUM),
    "adam-srt": Method(optimizer=relatives.AdamSRT, lr=1e-3),
    "lars": Method(optimizer=relatives.LARS, lr=1.0, fields=_MOMENTUM),
    "cayley-sgd": Method(optimizer=relatives.CayleySGD, lr=0.1, fields=_MOMENTUM),
}

methods: OpenTable[Method] = OpenTable(
    "method",
    {
        # Rates of Cho and Lee's CIFAR runs (arXiv:1709.09603, TensorFlow release); those also set alpha=0.1.
        "sgd": Method(**_SGD, kind="whole"),
        "sgd-g": Method(optimizer=SGDG, lr=0.2, fields=_ROWS),
        "adam-g": Method(optimizer=AdamG, lr=0.05, fields=_ROWS | {"beta2"}),
        # Rates of Yi (2022), Section 6.2: 1.0 without momentum, 0.1 with.
        "psi-sgd": Method(
            optimizer=PSISGD,
            lr=0.1,
            options=dict(momentum=0.9),
            fields=_MOMENTUM,
            lr_without_momentum=1.0,
        ),
        # torch's own, on all parameters, at its own settings.
        "adam": Method(optimizer=torch.optim.Adam, lr=1e-3, kind="whole"),
        "adamw": Method(optimizer=torch.optim.AdamW, lr=1e-3, kind="whole"),
        # SGD on both parts, each at a rate of its own: the control for what two rates alone do.
        "sgd-split": Method(**_SGD),
        **_RELATIVES,
    },
)
"""What `build_optimizer`, presets and runs know by name; ``riembn.methods["name"] = riembn.Method(…)`` adds one."""
