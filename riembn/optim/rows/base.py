"""What the optimizers share: every parameter is a stack of weight vectors, checked before any is touched."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from ... import kernels
from ...geometry import Layout
from . import joint
from .arithmetic import compute_dtype
from .loss_scaling import UNSCALED, LossScaling
from .sharded import is_sharded, local, on_local_rows, placed_as, row_zeros, rows_are_whole, whole

_Path = TypeVar("_Path")


class RowOptimizer(Optimizer):
    """Base of `SGDG`, `AdamG` and `PSISGD`: parameter checks, unit rows, state that keeps its precision."""

    unit_rows = True
    _ready = True  # False while the constructor collects groups: nothing is normalized until all are checked

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        self._ready = False
        super().__init__(params, {**defaults, **Layout()._asdict()})
        self._ready = True
        for group in self.param_groups:
            self._to_unit_rows(group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._check_options(group)
            names = group.get("param_names") or [None] * len(group["params"])
            which = [f"{name!r}" if name else f"number {i} of its group" for i, name in enumerate(names)]
            params, rows_group = group["params"], group
            if group.get("joint"):
                params = [joint.pack(w, b, Layout.of(group)) for w, b in self._pairs(group)]
                which, rows_group = [f"{name} with its bias" for name in which[::2]], _of_matrices(group)
            for name, p in zip(which, params, strict=True):
                self._check_rows(p, name, rows_group)
        except (TypeError, ValueError):
            self.param_groups.pop()  # a refused group leaves the optimizer as it was
            raise
        if self._ready:
            self._to_unit_rows(group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            fill_in(group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As `torch.optim.Optimizer.load_state_dict`; state of half-precision weights stays float32."""
        with read_by_hooks(self, self.restore_precision):
            super().load_state_dict(state_dict)

    def restore_precision(self, saved: Mapping[Tensor, Mapping[str, Any]]) -> None:
        """Take float32 state from ``saved`` again for half-precision weights, to whose type torch has cast it."""
        for group in self.param_groups:
            for p in group["params"]:
                wide = compute_dtype(p.dtype)
                for key, value in saved.get(p, {}).items() if wide != p.dtype else ():
                    if isinstance(value, Tensor) and value.is_floating_point():
                        self.state[p][key] = value.detach().to(self.state[p][key].device, wide, copy=True)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One optimization step.

        Args:
            closure: A function that evaluates the model anew and returns the loss; optional.

        Returns:
            The closure's loss, or None.

        Raises:
            RuntimeError: If a gradient is sparse, or not where its weight is.
            ValueError: If state that was loaded does not fit its weight.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scaling = LossScaling.of(self)
        if scaling.found_inf is not None and not self._step_supports_amp_scaling and scaling.skips():
            return loss
        for group in self.param_groups:
            if group.get("joint"):
                pairs = [(w, b) for w, b in self._pairs(group) if w.grad is not None and w.numel()]
                with joint.as_rows(self, pairs, Layout.of(group)) as rows:
                    self._step_rows(_of_matrices(group), rows, scaling)
            else:
                moving = [p for p in group["params"] if p.grad is not None and p.numel()]
                self._step_rows(group, moving, scaling)
        return loss

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Asked by `torch.amp.GradScaler`: whether it may leave its scale and its verdict to the kernels unread."""
        return all(
            not group.get("joint") and all(takes_scaling(group, p) for p in group["params"] if p.numel())
            for group in self.param_groups
        )

    def _step_rows(self, group: dict[str, Any], params: list[Tensor], scaling: LossScaling) -> None:
        grads = [dense_grad(p, type(self).__name__) for p in params]
        if scaling.grad_scale is not None and not all(takes_scaling(group, p) for p in params):
            grads, scaling = scaling.divide(grads), UNSCALED
        if group["maximize"]:  # a step against the negative gradient is a step of the negative rate
            group = {**group, "lr": -group["lr"], "alpha": -group.get("alpha", 0.0)}
        self._step_group(group, params, grads, scaling)

    def _step_group(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], scaling: LossScaling
    ) -> None:
        """One step of ``params``; ``scaling`` says something only where the CUDA kernels take all of them."""
        raise NotImplementedError

    def _check_options(self, group: dict[str, Any]) -> None:
        """Raise ValueError for a hyper-parameter outside its range."""
        name = type(self).__name__
        check_range(name, "lr", group["lr"], 0, math.inf)
        if group["foreach"] and group["fused"]:
            raise ValueError(f"{name}: foreach=True and fused=True exclude each other; leave one at None.")

    def _check_rows(self, p: Tensor, which: str, group: dict[str, Any]) -> None:
        """Raise unless ``p`` is a stack of finite, non-zero weight vectors."""
        name, shape = type(self).__name__, tuple(p.shape)
        if p.dim() < 2:
            raise ValueError(
                f"{name}: parameter {which} has shape {shape}, but weight vectors are the rows of tensors with "
                "two or more dimensions; give biases and normalization scales to another optimizer "
                "(riembn.build_optimizer does so)."
            )
        if not p.dtype.is_floating_point:
            raise ValueError(
                f"{name}: parameter {which} is {p.dtype}; only real floating-point weights are accepted."
            )
        if p.is_meta:
            raise ValueError(
                f"{name}: parameter {which} is on the meta device and holds no numbers; bring the network to a real "
                "one first (model.to_empty(device=...), then initialize or load it)."
            )
        # All rows on every device, so that all of them refuse, and none waits for another in vain.
        view, along = Layout.of(group).view(whole(p.detach()))
        if not p.numel():
            return
        here = local(p.detach())  # a device without rows has nothing to say
        if group["fused"] and here.numel() and kernels.fused(here, Layout.of(group)) is None:
            taken = kernels.cpu.TAKEN if p.device.type == "cpu" else kernels.cuda.TAKEN
            raise ValueError(
                f"{name}: fused=True, but parameter {which}, shape {shape}, {p.dtype} on {p.device.type}, is not one "
                f"the fused step takes ({taken}); leave fused=None, which takes the fastest path there is."
            )
        norms = torch.linalg.vector_norm(view, dim=along, dtype=compute_dtype(p.dtype))
        bad = torch.nonzero((norms.flatten() == 0) | ~norms.flatten().isfinite())
        if len(bad):
            row = int(bad[0])
            raise ValueError(
                f"{name}: row {row} of parameter {which}, shape {shape}, has norm {float(norms.flatten()[row]):g} "
                "and so no direction; "
                "reinitialize that row, or leave this parameter to another optimizer."
            )

    def _to_unit_rows(self, group: dict[str, Any]) -> None:
        if not self.unit_rows:
            return
        with torch.no_grad():
            if group.get("joint"):
                with joint.as_rows(self, self._pairs(group), Layout.of(group)) as rows:
                    to_unit_rows(rows, layout=Layout())
                return
            to_unit_rows([p for p in group["params"] if p.numel()], layout=Layout.of(group))

    def _pairs(self, group: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
        return joint.pairs(group["params"], type(self).__name__)

    def _state(self, p: Tensor, key: str) -> Tensor:
        """The state tensor ``key`` in ``p``'s shape, made of zeros at first; float32 for half precision."""
        value = self.state[p].get(key)
        if value is None:
            dtype = compute_dtype(p.dtype)
            value = torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format)
            self.state[p][key] = value
        return self._fitting(p, key, value, p.shape, is_sharded(p))

    def _row_state(self, p: Tensor, key: str, group: dict[str, Any]) -> Tensor:
        """The state tensor ``key`` with one value a row, shape ``(rows,)``."""
        value = self.state[p].get(key)
        if value is None:
            value = self.state[p][key] = row_zeros(p, Layout.of(group), compute_dtype(p.dtype))
        rows = Layout.of(group).row_count(p)
        return self._fitting(p, key, value, (rows,), is_sharded(p) and rows_are_whole(p, Layout.of(group)))

    def _fitting(self, p: Tensor, key: str, value: Tensor, shape: tuple[int, ...], sharded: bool) -> Tensor:
        """``value``, brought to the device and the type of ``p`` if it is not there: a kernel would not look.

        Raises:
            ValueError: If state that was loaded is not of ``shape``, or is whole where the weight is in parts.
        """
        if value.shape != shape or is_sharded(value) is not sharded:
            cut = {True: "in parts (a DTensor)", False: "whole"}
            raise ValueError(
                f"{type(self).__name__}: state {key!r} of a weight of shape {tuple(p.shape)} has shape "
                f"{tuple(value.shape)}, {cut[is_sharded(value)]}, but must have {tuple(shape)}, {cut[sharded]}; load "
                "state saved for these weights (into parts by torch.distributed.checkpoint.state_dict)."
            )
        dtype = compute_dtype(p.dtype)
        if value.dtype != dtype or value.device != p.device:
            value = self.state[p][key] = value.to(p.device, dtype)
        return value


@on_local_rows
def to_unit_rows(params: list[Tensor], *, layout: Layout) -> None:
    """Bring every weight vector to unit norm, in place."""
    for p in params:
        view, along = layout.view(p)
        wide = view.to(compute_dtype(p.dtype))
        view.copy_(wide / torch.linalg.vector_norm(wide, dim=along, keepdim=True))


def _of_matrices(group: dict[str, Any]) -> dict[str, Any]:
    """The group of the matrices that stand for the weights of a joint ``group`` with their biases."""
    return {**group, **Layout()._asdict()}


@contextmanager
def read_by_hooks(
    optimizer: Optimizer,
    loaded: Callable[[dict[Tensor, Any]], None],
    check: Callable[[dict[str, Any]], None] = lambda _: None,
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


def fill_in(group: dict[str, Any]) -> None:
    """Give a group that was saved before an option existed the default of that option."""
    group.setdefault("maximize", False)


def chosen_path(paths: tuple[_Path, _Path, _Path], foreach: bool | None, fused: bool | None) -> _Path:
    """The single-tensor, foreach or fused implementation: what is asked for, or else the fastest."""
    single_tensor, multi_tensor, fused_step = paths
    if wants_fused(foreach, fused):
        return fused_step  # leaves to foreach what it cannot take
    return single_tensor if foreach is False else multi_tensor


def wants_fused(foreach: bool | None, fused: bool | None) -> bool:
    """Whether the fused step is asked for, or may be chosen; `torch.compile` makes its own."""
    return not torch.compiler.is_compiling() and bool(fused or (fused is None and foreach is None))


def takes_on_device(group: dict[str, Any], p: Tensor) -> bool:
    """Whether the kernels on a CUDA device take ``p``: then the host need know nothing of its step."""
    return wants_fused(group["foreach"], group["fused"]) and kernels.cuda.takes(local(p), Layout.of(group))


def takes_scaling(group: dict[str, Any], p: Tensor) -> bool:
    """Whether those kernels undo a loss scale too: not where L^O is added before them, row by row of a DTensor."""
    return takes_on_device(group, p) and not is_sharded(p)


def check_range(
    caller: str,
    name: str,
    value: Any,
    low: float,
    high: float,
    *,
    open_high: bool = False,
    none: bool = False,
) -> None:
    """Raise ValueError unless ``value`` is a finite number (or one-element tensor) in the range."""
    end = ")" if open_high else "]"
    accepted = f"a finite number >= {low:g}" if high == math.inf else f"a number in [{low:g}, {high:g}{end}"
    if none:
        accepted += ", or None"
    if value is None and none:
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, Tensor) and value.numel() == 1 and value.dtype.is_floating_point:
        if value.device.type != "cpu":
            return  # reading it would wait for the device
        is_number, value = True, value.item()
    if not is_number or not math.isfinite(value) or not low <= value <= high or (open_high and value == high):
        raise ValueError(f"{caller}: {name}={value!r}, but {name} must be {accepted}.")


def dense_grad(p: Tensor, caller: str) -> Tensor:
    """The gradient of ``p``, refused if sparse or elsewhere; never written to."""
    grad = p.grad
    assert grad is not None
    if grad.is_sparse:
        raise RuntimeError(
            f"{caller}: a sparse gradient for a weight of shape {tuple(p.shape)}; rows on a sphere need dense "
            "gradients (nn.Embedding: set sparse=False)."
        )
    if grad.shape != p.shape or grad.device != p.device or is_sharded(grad) is not is_sharded(p):
        raise RuntimeError(
            f"{caller}: a gradient of shape {tuple(grad.shape)} on {grad.device}, {type(grad).__name__}, for a weight "
            f"of shape {tuple(p.shape)} on {p.device}, {type(p).__name__}; set p.grad to None after moving weights."
        )
    return placed_as(p, grad)
