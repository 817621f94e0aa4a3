"""Copies a model so that the copy shares nothing with it that either could change."""

from __future__ import annotations

import contextlib
import copy
import re
from collections import deque
from types import CellType, FunctionType
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from riembn.invariance.exact import widened

TORCHS_OWN = frozenset(vars(nn.Module()))
"""Attributes that every module has."""

CONTAINERS = (list, dict, set, deque)
_BACKWARD_HOOKS = re.compile(r"_backward(_pre)?_hooks$")


def copied_model(model: nn.Module) -> nn.Module:
    """A float64 copy, forward hooks and functions kept as attributes included, backward hooks left out."""
    memo: dict[int, Any] = {}
    try:
        with _Copying():
            twin = copy.deepcopy(model, memo)
    except Exception as error:
        raise ValueError(
            f"split: the model cannot be copied ({one_line(error)}). Give a module that copy.deepcopy accepts; "
            "of a model wrapped for several devices, the module inside."
        ) from error
    for module in twin.modules():
        for name, value in vars(module).items():
            if isinstance(value, dict) and _BACKWARD_HOOKS.search(name):
                value.clear()
            elif isinstance(value, dict) and name in TORCHS_OWN:
                value.update({k: _rebound(v, memo) for k, v in value.items() if isinstance(v, FunctionType)})
        vars(module).update({k: _rebound(v, memo) for k, v in vars(module).items() if isinstance(v, FunctionType)})
    return twin._apply(_settled)


def copied_state(value: Any, fixed: dict[int, Any]) -> Any:
    """A deep copy in which tensors are widened and without a graph; what ``fixed`` holds by its id stays."""
    with _Copying():
        return copy.deepcopy(value, dict(fixed))


def _rebound(function: FunctionType, memo: dict[int, Any]) -> FunctionType:
    """The function with copies of what it can reach of the model, and of the lists and dicts that it writes to.

    copy.deepcopy leaves functions as they are, so that a hook of the copy would still serve the original.
    """

    def copied(value: Any) -> Any:
        if id(value) in memo or isinstance(value, CONTAINERS):
            with contextlib.suppress(Exception), _Copying():
                return copy.deepcopy(value, memo)
        return value

    def cell(kept: CellType) -> CellType:
        try:
            return CellType(copied(kept.cell_contents))
        except ValueError:  # not filled yet
            return kept

    code, scope = function.__code__, function.__globals__
    closure = tuple(map(cell, function.__closure__ or ()))
    reached = {name: copied(scope[name]) for name in code.co_names if name in scope}
    changed = any(value is not scope[name] for name, value in reached.items())
    twin = FunctionType(
        code, {**scope, **reached} if changed else scope, function.__name__, function.__defaults__, closure
    )
    twin.__kwdefaults__ = function.__kwdefaults__
    return twin


def _settled(tensor: Tensor) -> Tensor:
    return widened(tensor.cpu() if tensor.device.type == "mps" else tensor)  # mps knows no float64


def one_line(error: BaseException) -> str:
    """The error's type and the first line of its message."""
    message = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {message[0]}"


class _Copying(TorchFunctionMode):
    """Inside, copy.deepcopy widens tensors, and takes what a pass left behind without its graph."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and type(args[0]) is Tensor:
            tensor, memo = args
            own = tensor.detach()
            settled = _settled(own)
            settled = settled.clone() if settled is own else settled  # else it is a copy already
            memo[id(tensor)] = settled.requires_grad_(tensor.is_leaf and tensor.requires_grad)
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))
