"""Several optimizers as one, which every scheduler, gradient scaler and checkpoint accepts: `Combined`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from .rows.base import RowOptimizer
from .rows.loading import check_method, read_by_hooks, restore_precision


class Combined(Optimizer):
    """Several optimizers over disjoint parameters, as one `torch.optim.Optimizer`.

    The groups of all parts stand in one ``param_groups``, the state of all parts in one ``state``, so that
    ``torch.optim.lr_scheduler``, ``torch.amp.GradScaler``, ``state_dict`` and ``torch.distributed.checkpoint``
    work as on any optimizer. Each group carries the number of its part under ``"part"``.

    Args:
        *parts: Freshly made optimizers that share no parameter and have no state yet. Of a `Combined` among them each
            part is one.

    Raises:
        TypeError: If a part is not an optimizer.
        ValueError: If there is no part, if a part already has state, or if a parameter is in two parts.

    A scheduler that cycles momentum (`torch.optim.lr_scheduler.OneCycleLR`) cycles the ``momentum`` of the parts
    that have one, and leaves betas as they are; where no part has one and all have betas, it cycles the first beta.
    A scheduler of ``parts[i]`` acts on that part alone.
    """

    def __init__(self, *parts: Optimizer) -> None:
        if not parts:
            raise ValueError("Combined: no optimizer given; pass one or more.")
        for part in parts:
            check_part(part)
        parts = self.parts = tuple(_unnested(parts))
        groups = [{**group, "part": i} for i, part in enumerate(parts) for group in part.param_groups]
        # What schedulers ask the defaults for: that there is a rate, and a momentum (or first beta) to cycle.
        defaults = {"lr": parts[0].defaults["lr"]}
        if any("momentum" in part.defaults for part in parts):
            defaults["momentum"] = next(p.defaults["momentum"] for p in parts if "momentum" in p.defaults)
        elif all("betas" in group for group in groups):
            defaults["betas"] = groups[0]["betas"]
        self._collecting = True
        super().__init__(groups, defaults)
        self._collecting = False
        self._link()

    _collecting = False

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the part whose number stands under ``"part"`` (default: the last part).

        Where the other groups have names of their parameters and this one has none, it is given some that count on:
        torch wants all or none.

        Raises:
            TypeError: If the group is no dict, or has no order.
            ValueError: If there is no such part, a parameter is already in a group, or the part refuses it.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"Combined: a param group must be a dict, but got {type(param_group).__name__}.")
        if self._collecting:
            super().add_param_group(param_group)
            return
        number = param_group.get("part", len(self.parts) - 1)
        if number not in range(len(self.parts)):
            raise ValueError(f"Combined: part={number!r}, but the parts are 0 to {len(self.parts) - 1}.")
        if isinstance(param_group["params"], set | frozenset):
            raise TypeError("Combined: the order of a set differs from run to run; give the parameters as a list.")
        group = dict(param_group, part=number)
        group["params"] = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
        present = {id(p) for g in self.param_groups for p in g["params"]}
        new = [p[1] if isinstance(p, tuple) else p for p in group["params"]]  # a tuple: name and parameter
        if any(id(p) in present for p in new):
            raise ValueError("Combined: a parameter of the new group is already in another group.")
        part = self.parts[number]
        if all("param_names" in g for g in self.param_groups):
            for i, p in enumerate(group["params"]):
                if not isinstance(p, tuple) and "param_names" not in group:
                    group["params"][i] = f"unnamed.{len(present) + i}", p
        part.add_param_group(group)  # fills in the part's own defaults, or refuses
        try:
            check_fused(part, "Combined")
        except ValueError:
            part.param_groups.pop()
            raise
        self.param_groups.append(part.param_groups[-1])

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of every part.

        Args:
            closure: A function that evaluates the model anew and returns the loss; called once.

        Returns:
            The closure's loss, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._link()
        scaling = {name: getattr(self, name) for name in ("grad_scale", "found_inf") if hasattr(self, name)}
        for part in self.parts:
            vars(part).update(scaling)
            try:
                _step_of_part(part)
            finally:
                for name in scaling:
                    delattr(part, name)
        return loss

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Asked by `torch.amp.GradScaler`: whether every part divides by its scale and skips by itself."""
        return all(getattr(part, "_step_supports_amp_scaling", False) for part in self.parts)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As `torch.optim.Optimizer.load_state_dict`.

        Raises:
            ValueError: If the groups differ in number, in size, or in the part they belong to, or if a part was saved
                by another method.
        """
        with read_by_hooks(self, self._check_parts, self._loaded):
            super().load_state_dict(state_dict)

    def _check_parts(self, state_dict: dict[str, Any]) -> None:
        saved = [group.get("part") for group in state_dict["param_groups"]]
        own = [group["part"] for group in self.param_groups]
        if saved != own:
            raise ValueError(
                f"Combined: the saved groups belong to parts {saved}, those of this optimizer to {own}; "
                "build it with the same method, model and split as when it was saved."
            )
        for i, part in enumerate(self.parts):
            of_part = [group for group in state_dict["param_groups"] if group["part"] == i]
            check_method(part, part.param_groups, of_part, "Combined")

    def _loaded(self, saved: dict[Tensor, Any]) -> None:
        self._link()
        for part in self.parts:
            # As torch does for one optimizer: its own options that were saved before they existed are filled in.
            part.__setstate__({"state": part.state, "param_groups": part.param_groups})
            if isinstance(part, RowOptimizer):
                restore_precision(part, saved)

    def __getstate__(self) -> dict[str, Any]:
        self._link()
        return {**super().__getstate__(), "parts": self.parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "parts" in state:
            self._link()

    def __repr__(self) -> str:
        self._link()
        return f"Combined({', '.join(map(repr, self.parts))})"

    def _link(self) -> None:
        """Let the parts work on this object's groups and state, which loading replaces."""
        for i, part in enumerate(self.parts):
            part.param_groups = [group for group in self.param_groups if group["part"] == i]
            part.state = self.state


def check_part(part: object) -> None:
    """Raise unless ``part`` is an optimizer that has not yet taken a step."""
    if not isinstance(part, Optimizer):
        raise TypeError(f"Combined: got {type(part).__name__}, but every part must be a torch optimizer.")
    if part.state:
        raise ValueError(
            f"Combined: the {type(part).__name__} part already has state; combine before the first step."
        )
    check_fused(part, "Combined")


def check_fused(optimizer: Optimizer, caller: str) -> None:
    """Raise for torch's fused SGD where it is wrong."""
    for group in optimizer.param_groups if isinstance(optimizer, torch.optim.SGD) else ():
        # https://github.com/pytorch/pytorch/issues/191763: wrong momentum, infinite after a few steps
        if group.get("fused") and any(p.is_cpu and p.dtype in (torch.float16, torch.bfloat16) for p in group["params"]):
            raise ValueError(
                f"{caller}: torch's fused SGD corrupts the momentum of 16-bit weights on a CPU; give it fused=False."
            )


def _unnested(parts: Iterable[Optimizer]) -> Iterator[Optimizer]:
    for part in parts:
        if isinstance(part, Combined):
            part._link()
            yield from part.parts
        else:
            yield part


def _step_of_part(part: Optimizer) -> None:
    """``part.step()`` with the hooks of that part alone: those for all optimizers fire for the whole, once."""
    part._opt_called = True  # type: ignore[attr-defined]  # a scheduler of the part asks whether it was stepped
    for before in part._optimizer_step_pre_hooks.values():
        before(part, (), {})
    step = type(part).step
    (step.__wrapped__ if getattr(step, "hooked", False) else step)(part)  # type: ignore[attr-defined]
    for after in part._optimizer_step_post_hooks.values():
        after(part, (), {})
