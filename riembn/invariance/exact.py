"""Evaluates torch functions without rounding to 32 bits, without the eps of normalizations and without dropout."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from riembn.invariance.heap import Heap
from riembn.invariance.patches import CONVOLUTIONS, Patches

# In place of eps, which torch wants positive. What is too small for this to be below rounding beside its variance is
# brought to size 1 first.
TINY = 1e-20
# A channel that varies by less beside its own size is constant: what is left of it is rounding.
_CONSTANT = 1e-8
# Values that are spread out further are used as they are: their variance is far above TINY.
_SPREAD_OUT = 1e-2

_NORMALIZATIONS: set[Callable[..., Any]] = {
    F.batch_norm,
    F.instance_norm,
    F.layer_norm,
    F.group_norm,
    F.rms_norm,
    F.normalize,
}
_OFF: dict[Callable[..., Any], dict[str, Any]] = {
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d), {"p": 0.0}),
    **dict.fromkeys((F.alpha_dropout, F.feature_alpha_dropout), {"p": 0.0}),
    F.multi_head_attention_forward: {"dropout_p": 0.0},
    F.rrelu: {"training": False},
}
_ADJUSTED: list[Callable[..., Any]] = [*_NORMALIZATIONS, *_OFF]
_SIGNATURES = {f: inspect.signature(f) for f in _ADJUSTED}
_WIDE = {
    **dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), torch.float64),
    **dict.fromkeys((torch.complex64, torch.complex32), torch.complex128),
}
_TO_NARROW = {getattr(Tensor, name) for name in ("float", "half", "bfloat16", "cfloat", "chalf")}
_NARROW_TYPE = re.compile(r"\b(Float|Half|BFloat16)Tensor")
_CUT = {Tensor.detach, Tensor.data.__get__}  # type: ignore[attr-defined]
_LEAVING = {Tensor.numpy, Tensor.__array__, Tensor.item, Tensor.tolist, Tensor.__float__}
_DIFFERENTIATING = {torch.autograd.grad, torch.autograd.backward, Tensor.backward}
_IN_PLACE = re.compile(r"(?<!_)_$|__i[a-z]+__$|__setitem__$|__set__$")
# A batch statistic over two values leaves only their order: the output is ±1 whatever the weights are.
_FEWEST = 3


class TooFewValues(ValueError):
    """A normalization sees so few values that its output hardly depends on them; ``values`` says how many."""

    def __init__(self, values: int, kind: str) -> None:
        super().__init__(f"{kind} sees {values} value(s) a channel")
        self.values, self.kind = values, kind


class Exact(TorchFunctionMode):
    """Inside, torch functions compute in float64 with dropout off, and with the eps asked for.

    The default dtype of the process is left alone: what a function makes in 32 or 16 bits is widened instead.

    Args:
        eps: False takes the eps of every normalization function away; True leaves each as it is.
        through: Whether gradients go through ``detach``, ``.data`` and ``no_grad``, so that they tell what a weight
            does to the output, and not what an optimizer would be told.
        heap: Is looked at before each function.

    Attributes:
        normalizations: How many calls of normalization functions were met.
        differentiates: Whether gradients are computed inside, which then must be enabled.
        cut: Whether a value was taken out of the graph of gradients, so that these may not tell the truth.
    """

    def __init__(self, *, eps: bool, through: bool, heap: Heap) -> None:
        super().__init__()
        self._heap = heap
        self.eps, self.through, self.normalizations = eps, through, 0
        self.differentiates, self.cut = False, False

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        self.differentiates = self.differentiates or func in _DIFFERENTIATING
        # Functions of torch that are written in Python hand on the ``out=None`` that nobody gave.
        in_place = _IN_PLACE.search(func.__name__) is not None or kwargs.get("out") is not None
        if func in _TO_NARROW or (func is Tensor.type and _NARROW_TYPE.search(str((*args[1:], *kwargs.values())))):
            return widened(args[0])
        if not in_place:
            args = tuple(map(_wide, args))
            kwargs = {k: _wide(v) for k, v in kwargs.items()}
        if func is F.scaled_dot_product_attention:
            if len(args) > 4:
                args = (*args[:4], 0.0, *args[5:])
            else:
                kwargs = kwargs | {"dropout_p": 0.0}
        elif func in _SIGNATURES:
            bound = _SIGNATURES[func].bind(*args, **kwargs)
            bound.apply_defaults()
            if func in _NORMALIZATIONS:
                self._normalize(func, bound.arguments)
            bound.arguments.update(_OFF.get(func, {}))
            args, kwargs = bound.args, bound.kwargs
        slices = func in CONVOLUTIONS and not torch.jit.is_tracing()  # which would note them as the model's
        self._heap.look(wanted=max(map(_bytes_on_cpu, args), default=0))
        with Patches(self._heap) if slices else contextlib.nullcontext():
            result = self._call(func, args, kwargs, in_place)
        return result if in_place else _wide(result)

    def _call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any, in_place: bool) -> Any:
        if not _in_graph(args):
            return func(*args, **kwargs)
        if func in _LEAVING:
            self.cut = True
            return func(args[0].detach(), *args[1:], **kwargs)
        taken = func in _CUT
        if not taken and torch.is_grad_enabled():
            if in_place and at_rest(args[0]):  # it can only have been detached by its author
                with torch.no_grad():
                    return func(*args, **kwargs)
            return func(*args, **kwargs)
        if not self.through or in_place:
            self.cut = self.cut or not in_place
            return func(*args, **kwargs)
        with torch.enable_grad():
            return args[0].view_as(args[0]) if taken else func(*args, **kwargs)

    def _normalize(self, func: Callable[..., Any], arguments: dict[str, Any]) -> None:
        """Take eps away; where it would still count beside what is normalized, bring the input to size 1."""
        self.normalizations += 1
        x = arguments["input"]
        statistics = True
        if func is F.batch_norm:
            statistics = arguments["training"] or arguments["running_mean"] is None
            if statistics:
                _require(x.numel() // x.size(1), "BatchNorm")
        elif func is F.instance_norm:
            statistics = arguments["use_input_stats"]
            if statistics:
                _require(x.numel() // (x.size(0) * x.size(1)), "InstanceNorm")
        if self.eps:
            return
        arguments["eps"] = TINY
        if statistics and x.numel():
            spread = _spread(func, x.detach(), arguments)
            if not _all_spread_out(spread):
                arguments["input"] = x * spread.reciprocal()


def widened(tensor: Tensor) -> Tensor:
    """The tensor in 64 bits a real number, if it is of floating-point or complex numbers."""
    return tensor.to(_WIDE[tensor.dtype]) if tensor.dtype in _WIDE else tensor


def _wide(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return _WIDE.get(value, value)
    return widened(value) if isinstance(value, Tensor) else value


def _bytes_on_cpu(value: Any) -> int:
    plain = isinstance(value, Tensor) and value.device.type == "cpu" and value.layout is torch.strided
    return value.nbytes if plain else 0


def _in_graph(args: Iterable[Any]) -> bool:
    return any(_in_graph(a) if isinstance(a, list | tuple) else getattr(a, "requires_grad", False) for a in args)


def at_rest(tensor: Any) -> bool:
    """Whether it is a leaf or a view of one."""
    base = tensor if tensor._base is None else tensor._base
    return bool(base.is_leaf and base.requires_grad)


def _spread(func: Callable[..., Any], x: Tensor, arguments: dict[str, Any]) -> Tensor:
    """The range of the values that are normalized together, or the largest of them where no mean is taken away.

    Infinite where they are all equal to rounding.
    """
    if func is F.normalize:
        together, dims = x, arguments["dim"]
    elif func in (F.layer_norm, F.rms_norm):
        together, dims = x, tuple(range(-len(arguments["normalized_shape"]), 0))
    elif func is F.batch_norm:
        together, dims = x, tuple(d for d in range(x.dim()) if d != 1)
    else:
        groups = arguments["num_groups"] if func is F.group_norm else x.size(1)
        together, dims = x.reshape(x.size(0), groups, -1), -1
    high, low = together.amax(dims, keepdim=True), together.amin(dims, keepdim=True)
    largest = torch.maximum(high.abs(), low.abs())
    if func in (F.normalize, F.rms_norm):
        return torch.where(largest > 0, largest, torch.ones_like(largest))
    spread = torch.where(high - low > _CONSTANT * largest, high - low, torch.full_like(high, torch.inf))
    if together is x:
        return spread
    return spread.repeat_interleave(x.size(1) // groups, 1).view(*x.shape[:2], *(1,) * (x.dim() - 2))


def _all_spread_out(spread: Tensor) -> bool:
    try:
        return bool((spread.isfinite() & (spread > _SPREAD_OUT)).all())
    except RuntimeError:  # under torch.vmap nobody can ask
        return False


def _require(values: int, kind: str) -> None:
    if values < _FEWEST:
        raise TooFewValues(values, kind)
