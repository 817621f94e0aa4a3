"""Builds one optimizer for a whole network, and adds to it what the network gains later."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from .geometry import weights_of
from .invariance import Split, split
from .invariance.statistics import are_fresh, has_statistics
from .methods import REST, SHARED, Method, MethodName, RestName, methods
from .optim import Combined
from .optim.combined import check_fused, check_part
from .optim.rows.sharded import whole

_LOG = logging.getLogger("riembn")
_FEW = 0.05  # share of a network below which a method for the manifold can change little
_NOTICEABLE = 1e-3  # change of the evaluation output that is worth a word
_NOTICEABLE_IF_TRAINED = 1e-2  # where a fresh network, whose output nobody misses, looks like a trained one
_ROUNDING = 1e-6  # of a row that has unit length already
_TURNED = 1e-2  # between unit rows: more than rounding to 16 bits

LayerRates = Mapping[str, float] | Callable[[str], float]


def build_optimizer(
    model: nn.Module,
    example_input: Any,
    method: MethodName | str,
    *,
    rule: Literal["invariant", "paper"] = "invariant",
    loss: Callable[..., torch.Tensor] | None = None,
    rest: RestName | Callable[[list[dict[str, Any]]], Optimizer] | None = None,
    rest_lr: float | None = None,
    rest_momentum: float = 0.9,
    rest_weight_decay: float = 5e-4,
    rest_options: Mapping[str, Any] | None = None,
    layer_lr: LayerRates | None = None,
    **overrides: Any,
) -> Optimizer:
    """One optimizer for a whole network: its scale-invariant weights on the sphere, the rest in flat space.

    Logs once, by ``logging.getLogger("riembn")``, how much of the network is on the manifold.

    A method that brings weight rows to unit length leaves what a trained network computes as it is, in training
    and in evaluation: running statistics of BatchNorm follow the lengths, its scales what eps makes of them.

    Args:
        model: The network. Only weights that are brought to unit length, and statistics that follow, are changed.
        example_input: What ``model`` is called with, at least two samples; see `riembn.split`. Or a `Split` of
            this network: one cut by `torch.distributed.fsdp.fully_shard` is measured before, when it is whole; one
            that is trained, once its weights are loaded.
        method: A name in `riembn.methods`: "sgd" (all parameters in flat space: the baseline), "sgd-g", "adam-g",
            "psi-sgd", …
        rule: Which weights go on the manifold: "invariant" (measured) or "paper"; see `riembn.split`.
        loss: As for `riembn.split`; this and ``rule`` say nothing if a `Split` is given.
        rest: What the other parameters go to: "sgd" (Nesterov momentum), "adam", "adamw", or a function that
            takes two param groups (weights, then biases and normalization scales; more with ``layer_lr``) and
            returns an optimizer; None for the method's own.
        rest_lr: Learning rate of the rest; None: 0.1 for SGD, 0.01 with ``rule="paper"`` as in the authors'
            release, 0.001 for "adam" and "adamw".
        rest_momentum: Momentum of the rest, for ``rest="sgd"``.
        rest_weight_decay: Decay of the rest's weights; biases and normalization scales have none, as in the paper,
            in whichever shape: ``(channels,)`` or ``(channels, 1, 1)``.
        rest_options: Further options of the rest's optimizer, by its own names.
        layer_lr: Factors of the learning rates by parameter name: a mapping of patterns as in a shell, of which the
            first that fits counts (1 where none does), or a function. A bias that belongs to its weight's rows
            has its weight's.
        **overrides: Hyper-parameters of the method by their own names: ``lr``, ``momentum``, ``betas``, ``eps``,
            ``grad_clip``, ``alpha``; and ``foreach``, ``fused``, ``maximize``, which go to the rest as well (a
            function given as ``rest`` sees to its own). For "sgd" those of `torch.optim.SGD`, whose decay acts on
            every parameter, as in the paper's baseline; Nesterov's momentum unless another kind is asked for.

    Returns:
        A `torch.optim.Optimizer`: the method's own for one of kind "whole", else `riembn.Combined` whose part 0
        holds the weights on the manifold, and whose groups have the names of their parameters (``param_names``).
        Works with every ``lr_scheduler``, ``GradScaler`` and ``state_dict``.
        Parameters that are frozen (``requires_grad=False``) are in it too, as in torch: they train once unfrozen.

    Raises:
        ValueError: For an unknown method, rule, rest or hyper-parameter, a factor below 0, a pattern that fits no
            parameter, a model without invariant weights, or a ``rest`` that returns an optimizer of other
            parameters or one that has already taken a step.
        TypeError: For a model that is no module, a method that is no name, or a ``rest`` that returns no optimizer.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"build_optimizer: model is a {type(model).__name__}; give a torch.nn.Module.")
    if not isinstance(method, str):
        raise TypeError(
            f"build_optimizer: method is a {type(method).__name__}; give model, example input and name, in this order."
        )
    if method not in methods:
        raise ValueError(f"build_optimizer: no method {method!r}; there are {_list(methods)}.")
    how = methods[method]
    options = _options(method, how, overrides)
    factors = _factors(model, layer_lr)
    if how.kind == "whole":
        groups = _by_rate([{"params": list(model.parameters())}], factors)
        made = how.optimizer(groups, **options)
        check_fused(made, "build_optimizer")
        return _rated(made, factors)
    found = _found(model, example_input, rule, loss)
    if not found.invariant:
        raise ValueError(
            f"build_optimizer: {type(model).__name__} has no weights for the manifold by rule={found.rule!r}; "
            "print riembn.split(model, example_input) to see why, or use method 'sgd'."
        )
    _say_how_much(model, found)
    for entry in found.values():
        if entry.rows and entry.partner:
            factors[id(found[entry.partner].parameter)] = factors[id(entry.parameter)]
    flat = []  # made first: what it refuses is refused before a weight is brought to unit norm
    groups = _by_rate(_flat_groups(found, rest_weight_decay), factors)
    if groups:
        to = how.rest if rest is None else rest
        if rest_lr is None:
            rest_lr = how.rest_lr_of(found.rule, to if isinstance(to, str) else "sgd")
        shared = {name: overrides[name] for name in SHARED if name in overrides}
        flat.append(_rest_optimizer(to, groups, rest_lr, rest_momentum, {**shared, **(rest_options or {})}))
    with _same_evaluation(model, found):
        on_manifold = how.optimizer(_named(_by_rate(found.groups(), factors), model), **options)
    for part in (on_manifold, *flat):
        part.param_groups[:] = _named(part.param_groups, model)  # a function may have made groups of its own
    return _rated(Combined(on_manifold, *flat), factors)


def add_parameters(
    optimizer: Optimizer,
    model: nn.Module,
    example_input: Any,
    *,
    rule: Literal["invariant", "paper"] = "invariant",
    loss: Callable[..., torch.Tensor] | None = None,
) -> Split:
    """Give an optimizer the parameters that its network has gained, each to the part where `split` says.

    They have the settings that their part was built with: its first learning rate, and in the rest the decay of
    the other weights there, or of the other biases and scales. What the optimizer holds stays where it is: a warning
    is logged if the change of the network has taken the invariance of weights on the manifold away.

    Args:
        optimizer: As `build_optimizer` returns it.
        model: The network; of its parameters all are added that the optimizer does not hold.
        example_input: As for `build_optimizer`, and so are ``rule`` and ``loss``.

    Returns:
        What was found out about the added parameters.

    Raises:
        ValueError: If there are none.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [p for p in model.parameters() if id(p) not in held]
    if not missing:
        raise ValueError(
            f"add_parameters: the optimizer holds every parameter of {type(model).__name__}; change the network first."
        )
    found = _found(model, example_input, rule, loss)
    new = found.filter(lambda entry: id(entry.parameter) not in held)
    # By the groups, since a wrapper (of Accelerate, say) is no `Combined` itself.
    if not all("part" in group for group in optimizer.param_groups):
        optimizer.add_param_group({"params": missing})
        return new
    last = max(group["part"] for group in optimizer.param_groups)
    on_manifold = {id(p) for group in optimizer.param_groups if group["part"] == 0 for p in group["params"]}
    lost = [name for name, p in found.rest if id(p) in on_manifold and p.requires_grad]
    if lost:
        _LOG.warning(
            "riembn: as %s is now, weights on the manifold are scale-invariant no longer: %s; build the optimizer anew",
            type(model).__name__,
            _list(lost),
        )
    if new.rest and not last:
        raise ValueError(
            f"add_parameters: {new.rest[0][0]!r} does not belong on the manifold, and the optimizer has no other part; "
            "build it anew."
        )
    with _same_evaluation(model, found):
        for group in _named(new.groups(), model):
            optimizer.add_param_group({**group, "part": 0})
    for group in _named(_flat_groups(new, 0.0), model):
        # The rest may be several parts, of which one has the weights.
        alike = [g for g in optimizer.param_groups if g["part"] > 0 and _are_weights(g) == _are_weights(group)]
        part, decay = (alike[0]["part"], alike[0]["weight_decay"]) if alike else (last, 0.0)
        optimizer.add_param_group({**group, "part": part, "weight_decay": decay})
    return new


def _options(method: str, how: Method, overrides: Mapping[str, Any]) -> dict[str, Any]:
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
    return options


def _found(model: nn.Module, example_input: Any, rule: str, loss: Callable[..., torch.Tensor] | None) -> Split:
    if isinstance(example_input, Split):
        return example_input.rebind(model)
    return split(model, example_input, rule=rule, loss=loss)


def _flat_groups(found: Split, decay: float) -> list[dict[str, Any]]:
    """Weights, then biases and normalization scales, which have no decay."""
    parameters = [p for _, p in found.rest]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if _is_weight(p)], "weight_decay": decay},
        {"params": [p for p in parameters if not _is_weight(p)], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _is_weight(parameter: Tensor) -> bool:
    """Whether it is no bias and no scale: those have one number a channel, if need be with axes of size 1 behind it."""
    return parameter.dim() == 2 or math.prod(parameter.shape[1:]) > 1  # a linear map may have one input


def _are_weights(group: Mapping[str, Any]) -> bool:
    return any(map(_is_weight, group["params"]))


def _say_how_much(model: nn.Module, found: Split) -> None:
    total = sum(p.numel() for p in model.parameters())
    held = sum(p.numel() for _, p in found.invariant)
    # Not by rows: one may be a whole tensor, and two of them most of a network.
    channels, others = (
        sum(e.parameter.shape[0] for e in found.values() if e.invariant is invariant and _is_weight(e.parameter))
        for invariant in (True, False)
    )
    said = (
        f"riembn: {held:,} of {total:,} parameters of {type(model).__name__} ({held / total:.0%}) are on the manifold, "
        f"{channels:,} of {channels + others:,} output channels"
    )
    if held < _FEW * total or channels < _FEW * (channels + others):
        _LOG.warning("%s, so the method can change little; print riembn.split(model, input) to see why", said)
    else:
        _LOG.info("%s", said)


@contextmanager
def _same_evaluation(model: nn.Module, found: Split) -> Iterator[None]:
    """Let running statistics follow weight rows that are brought to unit length inside."""
    if are_fresh(model):
        yield
        return
    before = list(_rows(found))
    yield
    after = list(_rows(found))
    if max(_largest((a - b) / b.norm(dim=1, keepdim=True)) for b, a in zip(before, after, strict=True)) < _ROUNDING:
        return
    turned = max(_largest(nn.functional.normalize(b, dim=1) - a) for b, a in zip(before, after, strict=True))
    statistics, name = found.statistics, type(model).__name__
    if turned > _TURNED:
        _LOG.warning(
            "riembn: the method changes the weights of %s by more than their lengths; what it computes changes", name
        )
    elif statistics is None or not statistics.fit(model):
        if has_statistics(model):
            _LOG.warning(
                "riembn: the running statistics of %s no longer fit its weights, and were not measured; give "
                "build_optimizer an example input, or a Split with the measured rule made after the weights were "
                "loaded",
                name,
            )
    else:
        statistics.write(model)
        if not statistics.change < (_NOTICEABLE if has_statistics(model) else _NOTICEABLE_IF_TRAINED):
            _LOG.warning(
                "riembn: with unit weight rows the evaluation output of %s changes by %.1e of its size; "
                "statistics could not be carried over exactly, or a normalization without any has a large eps",
                name,
                statistics.change,
            )


def _rows(found: Split) -> Iterator[Tensor]:
    for tensors, layout in weights_of(found.groups()):
        yield layout.rows(*(whole(p.detach()).float() for p in tensors)).clone()


def _largest(rows: Tensor) -> float:
    return float(rows.norm(dim=1).max()) if rows.numel() else 0.0


def _factors(model: nn.Module, layer_lr: LayerRates | None) -> dict[int, float]:
    """The factor of each parameter's learning rate, by its id."""
    names = {name: id(p) for name, p in model.named_parameters()}
    if isinstance(layer_lr, Mapping):
        patterns = layer_lr
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(
                    f"build_optimizer: layer_lr has {pattern!r}, which fits no parameter of {type(model).__name__}; "
                    "give patterns of the names in model.named_parameters()."
                )
        found = {
            n: next((factor for pattern, factor in patterns.items() if fnmatchcase(n, pattern)), 1.0) for n in names
        }
    else:
        found = {name: layer_lr(name) if layer_lr else 1.0 for name in names}
    for name, factor in found.items():
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 <= factor < math.inf:
            raise ValueError(
                f"build_optimizer: layer_lr gives {factor!r} for {name!r}, but a factor must be a finite number >= 0."
            )
    return {key: found[name] for name, key in names.items()}


def _by_rate(groups: Iterable[dict[str, Any]], factors: Mapping[int, float]) -> list[dict[str, Any]]:
    """Groups whose parameters have one factor each."""
    return [
        {**group, "params": [p for p in group["params"] if factors[id(p)] == factor]}
        for group in groups
        for factor in dict.fromkeys(factors[id(p)] for p in group["params"])
    ]


def _named(groups: Iterable[dict[str, Any]], model: nn.Module) -> list[dict[str, Any]]:
    """Groups with the names of their parameters, as torch keeps them."""
    names = {id(p): name for name, p in model.named_parameters()}
    return [{**group, "param_names": [names[id(p)] for p in group["params"]]} for group in groups]


def _rated(optimizer: Optimizer, factors: Mapping[int, float]) -> Optimizer:
    """The optimizer, the rates of its groups multiplied by their factors."""
    for group in optimizer.param_groups:
        found = {factors[id(p)] for p in group["params"]}
        if len(found) > 1:
            raise ValueError(
                "build_optimizer: the optimizer that rest returned has joined groups of different layer_lr; make it "
                "of the groups that it is called with."
            )
        if found != {1.0}:
            group["lr"] = group["lr"] * found.pop()
    return optimizer


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
    options: dict[str, Any] = dict(momentum=momentum, nesterov=momentum > 0) if rest == "sgd" else {}
    # On a CUDA device fused as the rows are, so that a gradient scaler need not wait for either.
    if shared.get("foreach") is None and shared.get("fused") is None:
        if all(p.is_cuda for group in groups for p in group["params"]):
            shared = {**shared, "fused": True}
    make: Callable[..., Optimizer] = REST[rest]
    return make(groups, lr=lr, **{**options, **shared})


def _list(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
