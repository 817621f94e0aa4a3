"""A step like the last one on a GPU: what was found out about tensors holds as long as they lie where they lay.

A GPU steps a network in less time than Python needs to ask a hundred tensors what they are, so the next step asks each
of them only whether it is still that.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter, is_not
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...geometry import Layout
from ...kernels import cuda


class Last(NamedTuple):
    """What the last step of a param group was taken with: all of its weights, by the kernels alone."""

    params: list[Tensor]
    states: list[list[Tensor]]
    layout: Layout
    tables: cuda.Tables
    switches: tuple[Any, ...]
    seen: tuple[list[Any], ...]
    kept: list[int]

    @classmethod
    def of(
        cls,
        state: Mapping[Tensor, Mapping[str, Any]],
        group: dict[str, Any],
        params: list[Tensor],
        states: list[list[Tensor]],
        layout: Layout,
        tables: cuda.Tables,
    ) -> Last:
        return cls(params, states, layout, tables, _switches(group), _seen(params, states), _ids(state, params))

    @property
    def columns(self) -> list[list[Tensor]]:
        """As a kernel takes them; it reads the gradients where its tables say."""
        return [self.params, [], *self.states]

    def holds(self, state: Mapping[Tensor, Mapping[str, Any]], group: dict[str, Any]) -> bool:
        """Whether a step of ``group`` can be taken with the same tables: no tensor is another, or elsewhere."""
        params = group["params"]
        if len(params) != len(self.params) or _switches(group) != self.switches or cuda.refused:
            return False
        if torch.compiler.is_compiling() or any(map(is_not, params, self.params)):
            return False
        try:
            return _ids(state, params) == self.kept and _seen(params, self.states) == self.seen
        except (AttributeError, KeyError, RuntimeError, TypeError):  # no gradient, no state, or one without an address
            return False


def _ids(state: Mapping[Tensor, Mapping[str, Any]], params: list[Tensor]) -> list[int]:
    """Which objects are kept for the weights; none can be another with the same number, since `Last` keeps them all."""
    return [id(value) for p in params for value in state[p].values()]


def _switches(group: dict[str, Any]) -> tuple[Any, ...]:
    """What of a group's options decides which kernels take it."""
    get = group.get
    return (
        get("row_dim"), get("conv_groups"), get("channels_per_row"), get("joint"), get("foreach"), get("fused"),
        bool(get("alpha")), bool(get("momentum")),
    )  # fmt: skip


def _seen(params: list[Tensor], states: list[list[Tensor]]) -> tuple[list[Any], ...]:
    """Where the tensors lie and what they are; by `map`, which asks a hundred tensors faster than a loop."""
    grads: list[Any] = [*map(_GRAD, params)]
    return (
        [*map(_ADDRESS, params)], [*map(_SHAPE, params)], [*map(_STRIDE, params)],
        [*map(_ADDRESS, grads)], [*map(_SHAPE, grads)], [*map(_STRIDE, grads)],
        [*map(_TYPE, grads)], [*map(_NEGATIVE, grads)],
        *([*map(_ADDRESS, column)] for column in states),
    )  # fmt: skip


_GRAD, _SHAPE, _TYPE = attrgetter("grad"), attrgetter("shape"), attrgetter("dtype", "layout")
_ADDRESS, _STRIDE, _NEGATIVE = Tensor.data_ptr, Tensor.stride, Tensor.is_neg
