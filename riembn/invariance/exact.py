"""How is a network evaluated without rounding, without the eps of its normalizations and without dropout?"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["TINY", "Exact", "TooFewValues"]

# In place of eps, which torch wants positive: below float64 rounding beside any variance met, and a channel that is
# constant gives 0/sqrt(TINY) = 0 and not 0/0.
TINY = 1e-20

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
_NARROW = (torch.float32, torch.float16, torch.bfloat16)
_TO_NARROW = {Tensor.float, Tensor.half, Tensor.bfloat16}
_CUT = {Tensor.detach, Tensor.data.__get__}  # type: ignore[attr-defined]
# A batch statistic over two values leaves only their order: the output is ±1 whatever the weights are.
_FEWEST = 3


class TooFewValues(ValueError):
    """A normalization sees so few values that its output hardly depends on them; ``values`` says how many."""

    def __init__(self, values: int, kind: str) -> None:
        super().__init__(f"{kind} sees {values} value(s) a channel")
        self.values, self.kind = values, kind


class Exact(TorchFunctionMode):
    """Inside, torch functions compute in float64 with dropout off, and with the eps asked for.

    Args:
        eps: Replaces the eps of every normalization function; None leaves each as it is.

    Attributes:
        normalizations: How many calls of normalization functions were met.
        cut: Whether a value was taken out of the graph of gradients, so that these may not tell the truth.
    """

    def __init__(self, eps: float | None) -> None:
        super().__init__()
        self.eps, self.normalizations, self.cut = eps, 0, False

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _TO_NARROW:
            return args[0].double()
        args = tuple(torch.float64 if _is_narrow(a) else a for a in args)
        kwargs = {k: torch.float64 if _is_narrow(v) else v for k, v in kwargs.items()}
        if func is F.scaled_dot_product_attention:
            if len(args) > 4:
                args = (*args[:4], 0.0, *args[5:])
            else:
                kwargs = kwargs | {"dropout_p": 0.0}
        elif func in _SIGNATURES:
            bound = _SIGNATURES[func].bind(*args, **kwargs)
            bound.apply_defaults()
            if func in _NORMALIZATIONS:
                self._meet(func, bound.arguments)
            bound.arguments.update(_OFF.get(func, {}))
            args, kwargs = bound.args, bound.kwargs
        elif func in _CUT or not torch.is_grad_enabled():
            self.cut = self.cut or any(isinstance(a, Tensor) and a.requires_grad for a in args)
        return func(*args, **kwargs)

    def _meet(self, func: Callable[..., Any], arguments: dict[str, Any]) -> None:
        self.normalizations += 1
        if self.eps is not None:
            arguments["eps"] = self.eps
        x = arguments["input"]
        if func is F.batch_norm and (arguments["training"] or arguments["running_mean"] is None):
            _require(x.numel() // x.size(1), "BatchNorm")
        elif func is F.instance_norm and arguments["use_input_stats"]:
            _require(x.numel() // (x.size(0) * x.size(1)), "InstanceNorm")


def _is_narrow(value: Any) -> bool:
    return isinstance(value, torch.dtype) and value in _NARROW


def _require(values: int, kind: str) -> None:
    if values < _FEWEST:
        raise TooFewValues(values, kind)
