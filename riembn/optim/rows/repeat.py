"""A step like the last one on a GPU: what was found out about tensors holds as long as they lie where they lay.

A GPU steps a network in less time than Python needs to ask a hundred tensors what they are, so the next step asks each
of them only whether it is still that. Gradients may be others, like those before: backward makes new ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from operator import attrgetter, is_, is_not, methodcaller
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
    gradients: list[int]  # their addresses
    seen: tuple[list[Any], ...]
    entries: list[Mapping[str, Any]]  # of the optimizer's state, for the weights
    kept: list[Any]  # what stands in them

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
        entries = [state[p] for p in params]
        return cls(
            params, states, layout, tables, _switches(group), *_seen(params, states), entries, [*_values(entries)]
        )

    @property
    def columns(self) -> list[list[Tensor]]:
        """As a kernel takes them; it reads the gradients where its tables say."""
        return [self.params, [], *self.states]

    def again(self, group: dict[str, Any]) -> Last | None:
        """What to take a step of ``group`` with; None if any tensor but a gradient is another, or elsewhere.

        That the optimizer's state has the same entries, the caller knows (`same`).
        """
        params = group["params"]
        if len(params) != len(self.params) or _switches(group) != self.switches or cuda.refused:
            return None
        if torch.compiler.is_compiling() or any(map(is_not, params, self.params)):
            return None
        if not same(self.kept, [*_values(self.entries)]):
            return None
        try:
            gradients, seen = _seen(params, self.states)
        except (AttributeError, RuntimeError, TypeError):  # no gradient, or one without an address
            return None
        if seen != self.seen:
            return None
        if gradients == self.gradients:
            return self
        if cuda.capturing(params[0].device):  # what a graph replays is no step's last
            return None
        return self._replace(tables=self.tables.with_gradients(gradients), gradients=gradients)


def same(ones: list[Any], others: list[Any]) -> bool:
    """Whether two lists hold the same objects."""
    return len(ones) == len(others) and all(map(is_, ones, others))


def _values(entries: list[Mapping[str, Any]]) -> chain[Any]:
    return chain.from_iterable(map(_VALUES, entries))


def _switches(group: dict[str, Any]) -> tuple[Any, ...]:
    """What of a group's options decides which kernels take it."""
    get = group.get
    return (
        get("row_dim"), get("conv_groups"), get("channels_per_row"), get("joint"), get("foreach"), get("fused"),
        bool(get("alpha")), bool(get("momentum")),
    )  # fmt: skip


def _seen(params: list[Tensor], states: list[list[Tensor]]) -> tuple[list[int], tuple[list[Any], ...]]:
    """Where the gradients lie, then where all else lies and what it is.

    By `map`, which asks a hundred tensors faster than a loop.
    """
    grads: list[Any] = [*map(_GRAD, params)]
    return [*map(_ADDRESS, grads)], (
        [*map(_ADDRESS, params)], [*map(_SHAPE, params)], [*map(_STRIDE, params)],
        [*map(_SHAPE, grads)], [*map(_STRIDE, grads)], [*map(_DTYPE, grads)], [*map(_NEGATIVE, grads)],
        [*map(_DEVICE, grads)],
        *([*map(_ADDRESS, column)] for column in states),
    )  # fmt: skip


_GRAD, _SHAPE, _DTYPE = attrgetter("grad"), attrgetter("shape"), attrgetter("dtype")
_VALUES = methodcaller("values")
_ADDRESS, _STRIDE, _NEGATIVE, _DEVICE = Tensor.data_ptr, Tensor.stride, Tensor.is_neg, Tensor.get_device
