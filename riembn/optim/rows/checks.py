"""What the optimizers refuse: options out of range, parameters that are no rows, gradients that do not fit."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from ... import kernels
from ...geometry import Layout
from ...invariance.refusals import flat_pieces
from .arithmetic import compute_dtype
from .sharded import is_sharded, local, placed_as, whole


class Range(NamedTuple):
    """The numbers that an option may have."""

    low: float = 0
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    none: bool = False  # whether None is accepted, too
    whole: bool = False

    def check(self, caller: str, name: str, value: Any) -> None:
        """Raise ValueError unless ``value`` is a finite number (or one-element tensor) in the range."""
        if value is None and self.none:
            return
        number = value
        if isinstance(value, Tensor) and value.numel() == 1 and value.dtype.is_floating_point:
            if value.device.type != "cpu":
                return  # reading it would wait for the device
            number = value.item()
        kind = int if self.whole else (int, float)
        if isinstance(number, kind) and not isinstance(number, bool) and math.isfinite(number):
            above = number > self.low or (number == self.low and not self.open_low)
            if above and (number < self.high or (number == self.high and not self.open_high)):
                return
        raise ValueError(f"{caller}: {name}={value!r}, but {name} must be {self}.")

    def __str__(self) -> str:
        if self.high == math.inf:
            accepted = f"a {'whole' if self.whole else 'finite'} number {'>' if self.open_low else '>='} {self.low:g}"
        else:
            ends = ("(" if self.open_low else "[", ")" if self.open_high else "]")
            accepted = f"a number in {ends[0]}{self.low:g}, {self.high:g}{ends[1]}"
        return accepted + ", or None" * self.none


RANGES = {
    "lr": Range(),
    "momentum": Range(high=1, open_high=True),
    "eps": Range(),
    "grad_clip": Range(open_low=True, none=True),
    "alpha": Range(),
    # of the relatives
    **dict.fromkeys(("weight_decay", "trust", "delta"), Range()),
    **dict.fromkeys(("wd_ratio", "outward", "inward"), Range(high=1)),
    **dict.fromkeys(("beta", "decay_of_norm"), Range(high=1, open_high=True)),
    **dict.fromkeys(("every", "iterations", "restore_every"), Range(low=1, whole=True)),
    "steps": Range(whole=True),
}
BETAS = Range(high=1, open_high=True)


class CheckedGroups(Optimizer):
    """An optimizer that changes a weight only once all its groups are accepted; a refused one leaves it as it was.

    To the defaults it adds the three values of a `riembn.geometry.Layout`.
    """

    _ready = True  # False while the constructor collects groups

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        self._ready = False
        super().__init__(params, {**defaults, **Layout()._asdict()})
        self._ready = True
        for group in self.param_groups:
            self._prepare(group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _check_options(group, self.defaults.keys(), type(self).__name__)
            _check_there(group, type(self).__name__)
            self._check(group)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise
        if self._ready:
            self._prepare(group)

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
        self._step()
        return loss

    def _step(self) -> None:
        """Move all weights that have a gradient."""
        raise NotImplementedError

    def _check(self, group: dict[str, Any]) -> None:
        """Raise ValueError for a parameter that cannot be stepped."""
        raise NotImplementedError

    def _prepare(self, group: dict[str, Any]) -> None:
        """Bring the weights of an accepted group to where the method starts from."""
        raise NotImplementedError


def _check_options(group: Mapping[str, Any], names: Collection[str], caller: str) -> None:
    """Raise ValueError for an option among ``names`` that is out of range."""
    for name, accepted in RANGES.items():
        if name in names:
            accepted.check(caller, name, group[name])
    if "betas" in names:
        betas = group["betas"]
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise ValueError(f"{caller}: betas={betas!r}, but betas must be a pair of numbers in [0, 1).")
        for i, beta in enumerate(betas):
            BETAS.check(caller, f"betas[{i}]", beta)
    if group.get("foreach") and group.get("fused"):
        raise ValueError(f"{caller}: foreach=True and fused=True exclude each other; leave one at None.")


def labels(group: Mapping[str, Any]) -> list[str]:
    """What messages call the parameters of a group."""
    names = group.get("param_names") or [None] * len(group["params"])
    return [f"{name!r}" if name else f"number {i} of its group" for i, name in enumerate(names)]


def _check_there(group: Mapping[str, Any], caller: str) -> None:
    """Raise ValueError for a parameter that is only a piece of itself, or holds no numbers."""
    for p, which in zip(group["params"], labels(group), strict=True):
        if advice := flat_pieces(p):
            raise ValueError(f"{caller}: parameter {which} has shape {tuple(p.shape)}: {advice}")
        if p.is_meta:
            raise ValueError(
                f"{caller}: parameter {which} is on the meta device and holds no numbers; bring the network to a real "
                "one first (model.to_empty(device=...), then initialize or load it)."
            )


def check_rows(p: Tensor, which: str, group: Mapping[str, Any], caller: str) -> None:
    """Raise ValueError unless ``p`` is a stack of finite, non-zero weight rows."""
    shape = tuple(p.shape)
    if p.dim() < 2:
        raise ValueError(
            f"{caller}: parameter {which} has shape {shape}, but weight rows are the rows of tensors with "
            "two or more dimensions; give biases and normalization scales to another optimizer "
            "(riembn.build_optimizer does so)."
        )
    if not p.dtype.is_floating_point:
        raise ValueError(
            f"{caller}: parameter {which} is {p.dtype}; only real floating-point weights are accepted."
        )
    if local(p.detach()).is_neg():
        raise ValueError(f"{caller}: parameter {which} is a view of its negative; give parameter.resolve_neg().")
    # All rows on every device, so that all of them refuse, and none waits for another in vain.
    view, along = Layout.of(group).view(whole(p.detach()))
    if not p.numel():
        return
    here = local(p.detach())  # a device without rows has nothing to say
    if group["fused"] and here.numel() and kernels.fused(here, Layout.of(group)) is None:
        taken = kernels.cpu.TAKEN if p.device.type == "cpu" else kernels.cuda.TAKEN
        raise ValueError(
            f"{caller}: fused=True, but parameter {which}, shape {shape}, {p.dtype} on {p.device.type}, is not one "
            f"the fused step takes ({taken}); leave fused=None, which takes the fastest path there is."
        )
    norms = torch.linalg.vector_norm(view, dim=along, dtype=compute_dtype(p.dtype))
    bad = torch.nonzero((norms.flatten() == 0) | ~norms.flatten().isfinite())
    if len(bad):
        row = int(bad[0])
        raise ValueError(
            f"{caller}: row {row} of parameter {which}, shape {shape}, has norm {float(norms.flatten()[row]):g} "
            "and so no direction; "
            "reinitialize that row, or leave this parameter to another optimizer."
        )


def dense_grad(p: Tensor, caller: str) -> Tensor:
    """The gradient of ``p``; never written to.

    Raises:
        RuntimeError: If it is sparse, not where its weight is, or holds other tensors and its weight does not.
    """
    grad = p.grad
    assert grad is not None
    if grad.layout is not torch.strided:
        raise RuntimeError(
            f"{caller}: a sparse gradient for a weight of shape {tuple(p.shape)}; rows on a sphere need dense "
            "gradients (nn.Embedding: set sparse=False)."
        )
    alike = is_sharded(grad) is is_sharded(p) and (not _is_wrapper(grad) or _is_wrapper(p))
    if grad.shape != p.shape or grad.device != p.device or not alike:
        raise RuntimeError(
            f"{caller}: a gradient of shape {tuple(grad.shape)} on {grad.device}, {type(grad).__name__}, for a weight "
            f"of shape {tuple(p.shape)} on {p.device}, {type(p).__name__}; a gradient has to lie as its "
            "weight does: set p.grad to None after moving weights."
        )
    return placed_as(p, grad)


def _is_wrapper(tensor: Tensor) -> bool:
    """Whether other tensors inside hold the numbers: kernels would read where there is nothing."""
    if type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__:
        return False
    try:
        return not tensor.untyped_storage().data_ptr()
    except RuntimeError:  # it has no storage at all
        return True
