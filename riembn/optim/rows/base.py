"""What the optimizers share: every parameter is a stack of weight rows, checked before any is touched.

A step goes from `CheckedGroups.step` by `_step` and `_step_rows` to one of a method's three implementations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor

from ... import kernels
from ...geometry import Layout
from . import joint
from .arithmetic import add_orthogonality, compute_dtype
from .checks import CheckedGroups, check_rows, dense_grad, labels
from .first_use import agrees
from .lists import batches, row_views
from .loading import check_method, fitting, read_by_hooks, restore_precision
from .loss_scaling import UNSCALED, LossScaling
from .repeat import Last, same
from .sharded import is_sharded, local, on_local_rows, row_zeros, rows_are_whole


class RowOptimizer(CheckedGroups):
    """Base of `SGDG`, `AdamG` and `PSISGD`: parameter checks, unit rows, the choice of path, state that fits.

    A method says what it keeps (`_states`) and implements its step three times, in place: for one weight and for lists
    of weights, with its `options` as keyword arguments, and by fused kernels.

    A group holds the three values of a `riembn.geometry.Layout`. With ``joint=True`` it holds weights and biases in
    turn, and each row of a weight goes on in its bias.
    """

    options: ClassVar[tuple[str, ...]]
    unit_rows: ClassVar[bool] = True

    _one: ClassVar[Callable[..., None]]
    """``(weight, gradient, *states, along, **options)``: views whose dimensions ``along`` run along a row; all but the
    weight in the type of the arithmetic, see `compute_dtype`."""
    _lists: ClassVar[Callable[..., None]]
    """``(batch, **options)``: a `Batch` of such views."""
    _kernel: ClassVar[str]
    """Of the modules of `kernels` the function that takes a step: ``(columns, layout, *options, *scaling)``, the
    columns being weights, gradients, and each kind of state."""

    _last: dict[int, Last | None] | None = None
    """By a group's number what its last step was taken with; copies and checkpoints are made without it."""
    _entries: list[Any] | None = None
    """Of the state, as the last step left it."""

    def _states(self, group: dict[str, Any], params: list[Tensor]) -> list[list[Tensor]]:
        """What is kept for ``params``, one list a kind, made of zeros at first (`_state`, `_row_state`)."""
        raise NotImplementedError

    def _advance(self, states: list[list[Tensor]], scaling: LossScaling) -> None:
        """Change what does not depend on the gradients, before each step."""

    def _check(self, group: dict[str, Any]) -> None:
        which, params, rows_group = labels(group), group["params"], group
        if group.get("joint"):
            params = [joint.pack(w, b, Layout.of(group)) for w, b in self._pairs(group)]
            which, rows_group = [f"{name} with its bias" for name in which[::2]], _of_matrices(group)
        for name, p in zip(which, params, strict=True):
            check_rows(p, name, rows_group, type(self).__name__)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As `torch.optim.Optimizer.load_state_dict`; state of half-precision weights stays float32.

        Raises:
            ValueError: If the groups differ in number or size, or were saved by another method.
        """

        def check(read: dict[str, Any]) -> None:
            check_method(self, self.param_groups, read["param_groups"], type(self).__name__)

        with read_by_hooks(self, check, lambda saved: restore_precision(self, saved)):
            super().load_state_dict(state_dict)

    def _step(self) -> None:
        scaling = LossScaling.of(self)
        if scaling.found_inf is not None and not self._step_supports_amp_scaling and bool(scaling.found_inf):
            return  # after waiting for the device
        if self._last is None or not same(self._entries or [], [*self.state.values()]):
            self._last = {}
        last = self._last
        for number, group in enumerate(self.param_groups):
            if (before := last.get(number)) is not None and (again := before.again(group)):
                last[number] = again
                self._advance(again.states, scaling)
                step = again.columns, again.layout, scaling, self._options(group)
                self._fused(kernels.cuda, *step, tables=again.tables)
            elif group.get("joint"):
                pairs = [(w, b) for w, b in self._pairs(group) if w.grad is not None and w.numel()]
                with joint.as_rows(self, pairs, Layout.of(group)) as rows:
                    self._step_rows(_of_matrices(group), rows, scaling)
            else:
                moving = [p for p in group["params"] if p.grad is not None and p.numel()]
                last[number] = self._step_rows(group, moving, scaling)
        self._entries = [*self.state.values()]

    def _options(self, group: dict[str, Any]) -> dict[str, Any]:
        options = {name: group[name] for name in self.options}
        if group["maximize"]:  # a step against the negative gradient is a step of the negative rate
            options["lr"] = -options["lr"]
        return options

    def _step_rows(self, group: dict[str, Any], params: list[Tensor], scaling: LossScaling) -> Last | None:
        """One step of ``params``, of which none is empty and each has a gradient; what a next step like it needs."""
        if not params:
            return None
        layout, options = Layout.of(group), self._options(group)
        alpha = -group.get("alpha", 0.0) if group["maximize"] else group.get("alpha", 0.0)
        grads = [dense_grad(p, type(self).__name__) for p in params]
        if scaling.grad_scale is not None and not all(self._takes_scaling(group, p) for p in params):
            grads, scaling = scaling.divide(grads), UNSCALED
        states = self._states(group, params)
        self._advance(states, scaling)
        tables: list[Any] = []

        def step(columns: list[list[Any]], alpha: float) -> None:
            if alpha:
                columns[1] = add_orthogonality(columns[0], columns[1], alpha, layout, scaling.grad_scale)
            for taken_by, some in self._by_kernels(columns, layout, group):
                if taken_by is not None:
                    made = self._fused(taken_by, some, layout, scaling, options)
                    tables.append(made if len(some[0]) == len(group["params"]) and not alpha else None)
                elif group["foreach"] is False:
                    for p, grad, *states in zip(*some, strict=True):
                        values = p, grad.to(compute_dtype(p.dtype)), *states
                        views, along = row_views(values, layout)
                        self._one(*views, along=along, **options)
                else:
                    for batch in batches(some, layout):
                        self._lists(batch, **options)
                        batch.store()

        on_local_rows([params, grads, *states], layout, alpha, step)
        own = all(g is p.grad and not is_sharded(p) for g, p in zip(grads, params, strict=True))
        if len(tables) != 1 or tables[0] is None or not own:
            return None
        return Last.of(self.state, group, params, states, layout, tables[0])

    def _fused(
        self,
        taken_by: ModuleType,
        columns: list[Any],
        layout: Layout,
        scaling: LossScaling,
        options: dict[str, Any],
        **tables: kernels.cuda.Tables,
    ) -> kernels.cuda.Tables | None:
        """A step by kernels; what a next one like it needs."""
        step = getattr(taken_by, self._kernel)
        return step(columns, layout, *options.values(), *scaling, **tables)

    def _by_kernels(
        self, columns: list[list[Any]], layout: Layout, group: dict[str, Any]
    ) -> Iterator[tuple[ModuleType | None, list[list[Any]]]]:
        """The columns parted by who moves them: one call of a module of `kernels`, or None for an eager step."""
        if not _wants_fused(group):
            yield None, columns
            return
        members: dict[Any, list[int]] = {}
        for i, p in enumerate(columns[0]):
            by = kernels.fused(p, layout)
            if by is kernels.cuda and not agrees(type(self), p.device):
                by = None
            kind = by and (by, p.device, p.dtype if by is kernels.cpu else None)
            members.setdefault(kind, []).append(i)
        if len(members) == 1:
            (kind,) = members
            yield kind and kind[0], columns
            return
        for kind, indices in members.items():
            yield kind and kind[0], [[column[i] for i in indices] for column in columns]

    def _takes_on_device(self, group: dict[str, Any], p: Tensor) -> bool:
        """Whether the kernels on a CUDA device take ``p``: then the host need know nothing of its step."""
        takes = _wants_fused(group) and kernels.cuda.takes(local(p), Layout.of(group))
        return takes and agrees(type(self), p.device)

    def _takes_scaling(self, group: dict[str, Any], p: Tensor) -> bool:
        """Whether those kernels undo a loss scale too: not where L^O is added before them, row by row of a DTensor."""
        return self._takes_on_device(group, p) and not is_sharded(p)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Asked by `torch.amp.GradScaler`: whether it may leave its scale and its verdict to the kernels unread."""
        return all(
            not group.get("joint") and all(self._takes_scaling(group, p) for p in group["params"] if p.numel())
            for group in self.param_groups
        )

    @torch.no_grad()
    def _prepare(self, group: dict[str, Any]) -> None:
        if self.unit_rows and group.get("joint"):
            with joint.as_rows(self, self._pairs(group), Layout.of(group)) as rows:
                to_unit_rows(rows, Layout())
        elif self.unit_rows:
            to_unit_rows([p for p in group["params"] if p.numel()], Layout.of(group))

    def _pairs(self, group: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
        return joint.pairs(group["params"], type(self).__name__)

    def _state(self, p: Tensor, key: str) -> Tensor:
        """The state tensor ``key`` in ``p``'s shape; float32 for half precision."""
        value = self.state[p].get(key)
        if value is None:
            dtype = compute_dtype(p.dtype)
            value = torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format)
        return self._fitting(p, key, value, p.shape, is_sharded(p))

    def _row_state(self, p: Tensor, key: str, layout: Layout) -> Tensor:
        """The state tensor ``key`` with one value a row, shape ``(rows,)``."""
        value = self.state[p].get(key)
        if value is None:
            value = row_zeros(p, layout, compute_dtype(p.dtype))
        shape = torch.Size([layout.row_count(p)])
        return self._fitting(p, key, value, shape, is_sharded(p) and rows_are_whole(p, layout))

    def _fitting(self, p: Tensor, key: str, value: Tensor, shape: torch.Size, sharded: bool) -> Tensor:
        fits = fitting(value, p, shape, sharded, type(self), key)
        if fits is not value or key not in self.state[p]:
            self.state[p][key] = fits
        return fits


def to_unit_rows(params: list[Tensor], layout: Layout) -> None:
    """Bring every weight row to unit norm, in place."""

    def step(columns: list[list[Any]], _: float) -> None:
        for p in columns[0]:
            view, along = layout.view(p)
            wide = view.to(compute_dtype(p.dtype))
            view.copy_(wide / torch.linalg.vector_norm(wide, dim=along, keepdim=True))

    on_local_rows([params], layout, 0.0, step)


def _of_matrices(group: dict[str, Any]) -> dict[str, Any]:
    """The group of the matrices that stand for the weights of a joint ``group`` with their biases."""
    return {**group, **Layout()._asdict()}


def _wants_fused(group: Mapping[str, Any]) -> bool:
    """Whether the fused step is asked for, or may be chosen; `torch.compile` makes its own."""
    foreach, fused = group["foreach"], group["fused"]
    return not torch.compiler.is_compiling() and bool(fused or (fused is None and foreach is None))
