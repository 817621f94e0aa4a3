"""State that is loaded: in the precision it was saved in, of this method, and where its weight is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from ...geometry import Layout
from .arithmetic import compute_dtype
from .sharded import is_sharded

_ADDED_LATER = {
    "amsgrad", "capturable", "decoupled_weight_decay", "differentiable", "foreach", "fused", "maximize",
}  # fmt: skip
"""Options that optimizers, torch's or these, did not always have: a group may have been saved without them."""
_OF_GROUPS = {"params", "param_names", "initial_lr", "part", "joint", *Layout._fields}
"""What a group may hold that is no option of a method."""


@contextmanager
def read_by_hooks(
    optimizer: Optimizer,
    check: Callable[[dict[str, Any]], None],
    loaded: Callable[[dict[Tensor, Any]], None],
) -> Iterator[None]:
    """Let ``check`` see the dict that ``load_state_dict`` reads, ``loaded`` its state by parameter afterwards.

    What is read is what the caller's hooks before loading return; their hooks after loading come last.
    """
    read: dict[str, Any] = {}

    def before(_: Optimizer, state_dict: dict[str, Any]) -> None:
        check(state_dict)
        read.update(state_dict)

    def after(_: Optimizer) -> None:
        saved = [i for group in read["param_groups"] for i in group["params"]]
        own = [p for group in optimizer.param_groups for p in group["params"]]
        loaded({p: read["state"].get(i, {}) for p, i in zip(own, saved, strict=True)})

    handles = (
        optimizer.register_load_state_dict_pre_hook(before),
        optimizer.register_load_state_dict_post_hook(after, prepend=True),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_method(part: Optimizer, own: list[dict[str, Any]], saved: list[dict[str, Any]], caller: str) -> None:
    """Raise ValueError, naming both, if the groups of ``part`` were saved by another method than its own.

    A group may hold more than a method's options, such as a decay that the caller's schedule sets in every group: it
    tells of another method only if all options of that one are there.
    """
    for group, read in zip(own, saved, strict=False):
        missing = part.defaults.keys() - read.keys() - _ADDED_LATER
        more = read.keys() - group.keys()
        others = map(_options, _methods_on_rows()) if "row_dim" in group else ()
        if missing or any(more & options and options <= read.keys() for options in others):
            raise ValueError(
                f"{caller}: the state was saved by {_method_of(read)} and cannot be loaded into "
                f"{type(part).__name__}; make the optimizer with the method and the rest of the one that was saved."
            )


def restore_precision(optimizer: Optimizer, saved: Mapping[Tensor, Mapping[str, Any]]) -> None:
    """Take float32 state from ``saved`` again for half-precision weights, to whose type torch has cast it."""
    for p in (p for group in optimizer.param_groups for p in group["params"]):
        wide = compute_dtype(p.dtype)
        for key, value in saved.get(p, {}).items() if wide != p.dtype else ():
            if isinstance(value, Tensor) and value.is_floating_point():
                device = optimizer.state[p][key].device
                optimizer.state[p][key] = value.detach().to(device, wide, copy=True)


def fitting(
    value: Tensor, p: Tensor, shape: tuple[int, ...], sharded: bool, method: type[Optimizer], key: str
) -> Tensor:
    """State of ``p`` as a kernel, which does not look, may take it: itself, or a copy if it is not so.

    Args:
        value: The state as it was made, loaded, or set by hand.
        p: Its weight, whose device it must be on.
        shape: What it must have: that of ``p``, then it lies in memory as ``p`` does, or ``(rows,)``.
        sharded: Whether it must be a DTensor.
        method, key: Whose state it is, for the message.

    Raises:
        ValueError: If it is not of ``shape``, or is whole where the weight is in parts.
    """
    if value.shape != shape or is_sharded(value) is not sharded:
        cut = {True: "in parts (a DTensor)", False: "whole"}
        raise ValueError(
            f"{method.__name__}: state {key!r} of a weight of shape {tuple(p.shape)} has shape "
            f"{tuple(value.shape)}, {cut[is_sharded(value)]}, but must have {tuple(shape)}, {cut[sharded]}; load "
            "state saved for these weights (into parts by torch.distributed.checkpoint.state_dict)."
        )
    dtype = compute_dtype(p.dtype)
    if value.dtype != dtype or value.device != p.device:
        value = value.to(p.device, dtype)
    if sharded or torch.compiler.is_compiling():  # what is compiled looks by itself
        return value
    one_a_row = len(shape) == 1
    in_order = value.is_contiguous() if one_a_row else value.stride() == p.stride()
    if not in_order:
        # without gaps, and in the same order
        wanted = torch.empty_like(value if one_a_row else p, device="meta").stride()
        in_order = value.stride() == wanted
    if in_order and not value.is_neg():
        return value
    return torch.zeros_like(value if one_a_row else p, dtype=dtype).copy_(value)


def _method_of(group: Mapping[str, Any]) -> str:
    """The optimizer whose options a saved group has, as far as that tells."""
    named = group.keys() - _ADDED_LATER - _OF_GROUPS
    known = _methods_on_rows() if "row_dim" in group else [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adam]
    if not group.get("decoupled_weight_decay"):
        known = [method for method in known if method is not torch.optim.AdamW]
    fitting = [method for method in known if _options(method) <= named]
    if not fitting:
        return f"an optimizer with the options {', '.join(sorted(named))}"
    return max(fitting, key=lambda method: len(_options(method))).__name__


def _options(method: type[Optimizer]) -> set[str]:
    return inspect.signature(method).parameters.keys() - _ADDED_LATER - _OF_GROUPS


def _methods_on_rows() -> list[type[Optimizer]]:
    from .. import PSISGD, SGDG, AdamG, relatives

    others = [made for made in vars(relatives).values() if isinstance(made, type) and issubclass(made, Optimizer)]
    return [AdamG, SGDG, PSISGD, *others]
