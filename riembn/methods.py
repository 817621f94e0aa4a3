"""Which optimizer does a method's name stand for? `build_optimizer` answers, for a whole network."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from .invariance import Split, split
from .optim import PSISGD, SGDG, AdamG, Combined
from .optim.combined import check_part

__all__ = ["METHODS", "build_optimizer"]

METHODS: dict[str, dict[str, Any]] = {
    # The rates of Cho and Lee's CIFAR runs (arXiv:1709.09603, TensorFlow release); those also set alpha=0.1.
    "sgd": dict(optimizer=torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
    "sgd-g": dict(optimizer=SGDG, lr=0.2, momentum=0.9, grad_clip=0.1, alpha=0.0, rest_lr=0.01),
    "adam-g": dict(
        optimizer=AdamG, lr=0.05, betas=(0.9, 0.99), eps=1e-8, grad_clip=0.1, alpha=0.0, rest_lr=0.01
    ),
    # This project's rate; Yi (2022, supplement, Table 3) has 0.1 with momentum 0.9, and 1.0 without.
    "psi-sgd": dict(optimizer=PSISGD, lr=0.05, momentum=0.9, rest_lr=0.01),
}
"""What `build_optimizer` knows, and the values it uses where the caller gives none."""

_SHARED = ("foreach", "fused", "maximize")  # options that every optimizer here has
REST = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def build_optimizer(
    model: nn.Module,
    example_input: Any,
    method: str,
    *,
    rule: str = "invariant",
    loss: Callable[..., torch.Tensor] | None = None,
    rest: str | Callable[[list[dict[str, Any]]], Optimizer] = "sgd",
    rest_lr: float | None = None,
    rest_momentum: float = 0.9,
    rest_weight_decay: float = 5e-4,
    **overrides: Any,
) -> Optimizer:
    """One optimizer for a whole network: its scale-invariant weights on the sphere, the rest in flat space.

    Args:
        model: The network; only looked at, except that SGD-G and Adam-G bring the invariant weights to unit norm.
        example_input: What ``model`` is called with, at least two samples; see `riembn.split`. Or a `Split` of
            this network: one cut by `torch.distributed.fsdp.fully_shard` is measured before, when it is whole.
        method: "sgd" (all parameters in flat space: the baseline), "sgd-g", "adam-g" or "psi-sgd".
        rule: Which weights go on the manifold: "invariant" (measured) or "paper"; see `riembn.split`.
        loss: As for `riembn.split`; this and ``rule`` say nothing if a `Split` is given.
        rest: What the other parameters go to: "sgd" (Nesterov momentum), "adam", "adamw", or a function that
            takes two param groups (weights, then biases and normalization scales) and returns an optimizer.
        rest_lr: Learning rate of the rest; 0.01 unless given.
        rest_momentum: Momentum of the rest, for ``rest="sgd"``.
        rest_weight_decay: Decay of the rest's weights; biases and normalization scales have none, as in the paper.
        **overrides: Hyper-parameters of the method by their own names: ``lr``, ``momentum``, ``betas``, ``eps``,
            ``grad_clip``, ``alpha``; and ``foreach``, ``fused``, ``maximize``, which go to the rest as well (a
            function given as ``rest`` sees to its own). For "sgd" those of `torch.optim.SGD`, whose decay acts on
            every parameter, as in the paper's baseline; Nesterov's momentum unless another kind is asked for.

    Returns:
        A `torch.optim.Optimizer`: `torch.optim.SGD` for "sgd", else `riembn.optim.Combined` whose part 0 holds
        the weights on the manifold. Works with every ``lr_scheduler``, ``GradScaler`` and ``state_dict``.

    Raises:
        ValueError: For an unknown method, rule, rest or hyper-parameter, a model without invariant weights, or a
            ``rest`` that returns an optimizer of other parameters or one that has already taken a step.
        TypeError: For a ``rest`` that returns no optimizer.
    """
    if method not in METHODS:
        raise ValueError(f"build_optimizer: no method {method!r}; there are {_list(METHODS)}.")
    defaults = dict(METHODS[method])
    optimizer, default_rest_lr = defaults.pop("optimizer"), defaults.pop("rest_lr", None)
    accepted = {*defaults, *_SHARED}
    if method == "sgd":
        accepted |= inspect.signature(optimizer).parameters.keys() - {"params"}
    for name in overrides:
        if name not in accepted:
            raise ValueError(
                f"build_optimizer: {method!r} has no option {name!r}; it has {_list(sorted(accepted))}."
            )
    options = {**defaults, **overrides}
    if method == "sgd":
        if "nesterov" not in overrides:  # torch refuses it without momentum, and with dampening
            options["nesterov"] = bool(options["momentum"]) and not options.get("dampening")
        return optimizer(model.parameters(), **options)

    if isinstance(example_input, Split):
        found = example_input.rebind(model)
    else:
        found = split(model, example_input, rule=rule, loss=loss)
    if not found.invariant:
        raise ValueError(
            f"build_optimizer: {type(model).__name__} has no weights for the manifold by rule={found.rule!r}; "
            "print riembn.split(model, example_input) to see why, or use method 'sgd'."
        )
    parameters = [p for _, p in found.rest if p.requires_grad]
    weights = [p for p in parameters if p.dim() > 1]
    others = [p for p in parameters if p.dim() <= 1]
    groups = [
        {"params": params, "weight_decay": decay}
        for params, decay in ((weights, rest_weight_decay), (others, 0.0))
        if params
    ]
    flat = []  # made first: what it refuses is refused before a weight is brought to unit norm
    if groups:
        rest_lr = default_rest_lr if rest_lr is None else rest_lr
        shared = {name: overrides[name] for name in _SHARED if name in overrides}
        flat.append(_rest_optimizer(rest, groups, rest_lr, rest_momentum, shared))
    return Combined(optimizer(found.groups(), **options), *flat)


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
    return REST[rest](groups, lr=lr, **shared, **options)


def _list(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
