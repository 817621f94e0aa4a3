"""The table of methods, and one optimizer for a whole network by a method's name."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from .invariance import Split, split
from .open_table import OpenTable
from .optim import PSISGD, SGDG, AdamG, Combined, relatives
from .optim.combined import check_part

__all__ = ["REST", "Method", "build_optimizer", "methods"]

REST = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
"""What the parameters off the manifold can go to, by name."""

_SHARED = ("foreach", "fused", "maximize")  # options that every optimizer here has
_LOG = logging.getLogger("riembn")
_FEW = 0.05  # share of a network's weights below which a method for the manifold can change little


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
            raise ValueError(f"Method: rest={self.rest!r} is not accepted; give one of {_list(REST)}.")
        object.__setattr__(self, "options", dict(self.options))
        object.__setattr__(self, "fields", frozenset(self.fields))

    def accepts(self) -> set[str] | None:
        """Names of the options that the optimizer takes; None if it takes any."""
        parameters = inspect.signature(self.optimizer).parameters.values()
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            return None
        return {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - {"params"}

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


_ROWS = frozenset({"momentum", "grad_clip", "alpha"})
_MOMENTUM = frozenset({"momentum"})

# What others have made of the same rows, at the values of their sources; where a source leaves a value to its user
# (a rate of LARS, of the brake, of Hyperball by SGD), this project's. The momentum of all with that field is 0.9.
_RELATIVES = {
    "pbwn": Method(optimizer=relatives.PBWN, lr=0.1, fields=_MOMENTUM),
    "oblique-sgd": Method(optimizer=relatives.ObliqueSGD, lr=1e-3, fields=_MOMENTUM),
    "oblique-adam": Method(optimizer=relatives.ObliqueAdam, lr=1e-3),
    "nero": Method(optimizer=relatives.Nero, lr=0.01),
    "muon-rows": Method(optimizer=relatives.MuonRows, lr=0.24, options=dict(momentum=0.6)),
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
        "sgd": Method(
            optimizer=torch.optim.SGD,
            lr=0.1,
            options=dict(momentum=0.9, nesterov=True, weight_decay=5e-4),
            kind="whole",
            fields=frozenset({"momentum", "nesterov", "weight_decay"}),
        ),
        "sgd-g": Method(
            optimizer=SGDG, lr=0.2, options=dict(momentum=0.9, grad_clip=0.1, alpha=0.0), fields=_ROWS
        ),
        "adam-g": Method(
            optimizer=AdamG,
            lr=0.05,
            options=dict(betas=(0.9, 0.99), eps=1e-8, grad_clip=0.1, alpha=0.0),
            fields=_ROWS | {"beta2"},
        ),
        # Rates of Yi (2022), Section 6.2: 1.0 without momentum, 0.1 with.
        "psi-sgd": Method(
            optimizer=PSISGD,
            lr=0.1,
            options=dict(momentum=0.9),
            fields=frozenset({"momentum"}),
            lr_without_momentum=1.0,
        ),
        # torch's own, on all parameters, at its own settings.
        "adam": Method(optimizer=torch.optim.Adam, lr=1e-3, kind="whole"),
        "adamw": Method(optimizer=torch.optim.AdamW, lr=1e-3, kind="whole"),
        # SGD on both parts, each at a rate of its own: the control for what two rates alone do.
        "sgd-split": Method(
            optimizer=torch.optim.SGD,
            lr=0.1,
            options=dict(momentum=0.9, nesterov=True, weight_decay=5e-4),
            fields=frozenset({"momentum", "nesterov", "weight_decay"}),
        ),
        **_RELATIVES,
    },
)
"""What `build_optimizer`, presets and runs know by name; ``riembn.methods["name"] = riembn.Method(…)`` adds one."""


def build_optimizer(
    model: nn.Module,
    example_input: Any,
    method: str,
    *,
    rule: Literal["invariant", "paper"] = "invariant",
    loss: Callable[..., torch.Tensor] | None = None,
    rest: str | Callable[[list[dict[str, Any]]], Optimizer] | None = None,
    rest_lr: float | None = None,
    rest_momentum: float = 0.9,
    rest_weight_decay: float = 5e-4,
    rest_options: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> Optimizer:
    """One optimizer for a whole network: its scale-invariant weights on the sphere, the rest in flat space.

    Logs once, by ``logging.getLogger("riembn")``, how much of the network is on the manifold.

    Args:
        model: The network; only looked at, except that SGD-G and Adam-G bring the invariant weights to unit norm.
        example_input: What ``model`` is called with, at least two samples; see `riembn.split`. Or a `Split` of
            this network: one cut by `torch.distributed.fsdp.fully_shard` is measured before, when it is whole.
        method: A name in `riembn.methods`: "sgd" (all parameters in flat space: the baseline), "sgd-g", "adam-g",
            "psi-sgd", …
        rule: Which weights go on the manifold: "invariant" (measured) or "paper"; see `riembn.split`.
        loss: As for `riembn.split`; this and ``rule`` say nothing if a `Split` is given.
        rest: What the other parameters go to: "sgd" (Nesterov momentum), "adam", "adamw", or a function that
            takes two param groups (weights, then biases and normalization scales) and returns an optimizer;
            None for the method's own.
        rest_lr: Learning rate of the rest; None: 0.1 for SGD, 0.01 with ``rule="paper"`` as in the authors'
            release, 0.001 for "adam" and "adamw".
        rest_momentum: Momentum of the rest, for ``rest="sgd"``.
        rest_weight_decay: Decay of the rest's weights; biases and normalization scales have none, as in the paper.
        rest_options: Further options of the rest's optimizer, by its own names.
        **overrides: Hyper-parameters of the method by their own names: ``lr``, ``momentum``, ``betas``, ``eps``,
            ``grad_clip``, ``alpha``; and ``foreach``, ``fused``, ``maximize``, which go to the rest as well (a
            function given as ``rest`` sees to its own). For "sgd" those of `torch.optim.SGD`, whose decay acts on
            every parameter, as in the paper's baseline; Nesterov's momentum unless another kind is asked for.

    Returns:
        A `torch.optim.Optimizer`: the method's own for one of kind "whole", else `riembn.Combined` whose part 0
        holds the weights on the manifold. Works with every ``lr_scheduler``, ``GradScaler`` and ``state_dict``.
        Parameters that are frozen (``requires_grad=False``) are in it too, as in torch: they train once unfrozen.

    Raises:
        ValueError: For an unknown method, rule, rest or hyper-parameter, a model without invariant weights, or a
            ``rest`` that returns an optimizer of other parameters or one that has already taken a step.
        TypeError: For a ``rest`` that returns no optimizer.
    """
    if method not in methods:
        raise ValueError(f"build_optimizer: no method {method!r}; there are {_list(methods)}.")
    how = methods[method]
    accepted = how.accepts()
    for name in overrides:
        if accepted is not None and name not in accepted:
            raise ValueError(f"build_optimizer: {method!r} has no option {name!r}; it has {_list(sorted(accepted))}.")
    options = {"lr": how.lr, **how.options, **overrides}
    if "lr" not in overrides and how.lr_without_momentum and not options.get("momentum"):
        options["lr"] = how.lr_without_momentum
    if "nesterov" in how.options and "nesterov" not in overrides:
        # torch refuses it without momentum, and with dampening
        options["nesterov"] = bool(options["momentum"]) and not options.get("dampening")
    if how.kind == "whole":
        return how.optimizer(model.parameters(), **options)

    if isinstance(example_input, Split):
        found = example_input.rebind(model)
    else:
        found = split(model, example_input, rule=rule, loss=loss)
    if not found.invariant:
        raise ValueError(
            f"build_optimizer: {type(model).__name__} has no weights for the manifold by rule={found.rule!r}; "
            "print riembn.split(model, example_input) to see why, or use method 'sgd'."
        )
    _say_how_much(model, found)
    parameters = [p for _, p in found.rest]
    weights = [p for p in parameters if p.dim() > 1]
    others = [p for p in parameters if p.dim() <= 1]
    groups = [
        {"params": params, "weight_decay": decay}
        for params, decay in ((weights, rest_weight_decay), (others, 0.0))
        if params
    ]
    flat = []  # made first: what it refuses is refused before a weight is brought to unit norm
    if groups:
        rest = how.rest if rest is None else rest
        if rest_lr is None:
            rest_lr = how.rest_lr_of(found.rule, rest if isinstance(rest, str) else "sgd")
        shared = {name: overrides[name] for name in _SHARED if name in overrides}
        flat.append(_rest_optimizer(rest, groups, rest_lr, rest_momentum, {**shared, **(rest_options or {})}))
    return Combined(how.optimizer(found.groups(), **options), *flat)


def _say_how_much(model: nn.Module, found: Split) -> None:
    total = sum(p.numel() for p in model.parameters())
    held = sum(p.numel() for _, p in found.invariant)
    share = held / max(total, 1)
    said = f"riembn: {held:,} of {total:,} parameters of {type(model).__name__} ({share:.0%}) are on the manifold"
    if share < _FEW:
        _LOG.warning("%s, so the method can change little; print riembn.split(model, input) to see why", said)
    else:
        _LOG.info("%s", said)


def _rest_optimizer(
    rest: str | Callable[[list[dict[str, Any]]], Optimizer],
    groups: list[dict[str, Any]],
    lr: float,
    momentum: float,
    shared: dict[str, Any],
) -> Optimizer:
    if callable(rest):
        given = {id(p) for group in groups for p in group["params"]}
        made = rest(groups)
        check_part(made)
        if any(id(p) not in given for group in made.param_groups for p in group["params"]):
            raise ValueError(
                "build_optimizer: the optimizer that rest returned has parameters that it was not given; make it of "
                "the groups that it is called with."
            )
        return made
    if rest not in REST:
        raise ValueError(f"build_optimizer: no rest {rest!r}; there are {_list(REST)}, or give a function.")
    options = dict(momentum=momentum, nesterov=momentum > 0) if rest == "sgd" else {}
    # On a CUDA device fused as the rows are, so that a gradient scaler need not wait for either.
    if shared.get("foreach") is None and shared.get("fused") is None:
        if all(p.is_cuda for group in groups for p in group["params"]):
            shared = {**shared, "fused": True}
    return REST[rest](groups, lr=lr, **{**options, **shared})


def _list(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
