"""What a gradient scaler leaves to the optimizer: to divide by its scale, and to skip a step that overflowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from .arithmetic import compute_dtype


class LossScaling(NamedTuple):
    """The tensors that `torch.amp.GradScaler` sets on an optimizer before its step."""

    grad_scale: Tensor | None  # the gradients are multiples by it; None where they have been divided already
    found_inf: Tensor | None  # not zero where a gradient is not finite: nothing may change then

    @classmethod
    def of(cls, optimizer: Optimizer) -> LossScaling:
        scale, found = (getattr(optimizer, name, None) for name in ("grad_scale", "found_inf"))
        return cls(scale if isinstance(scale, Tensor) else None, found if isinstance(found, Tensor) else None)

    def divide(self, grads: Sequence[Tensor]) -> list[Tensor]:
        """The gradients without the scale, as new tensors; for where there is one."""
        assert self.grad_scale is not None
        inverse = self.grad_scale.double().reciprocal().float()  # as torch's scaler divides
        return [g.to(compute_dtype(g.dtype)) * inverse.to(g.device) for g in grads]

    def advance(self, steps: Sequence[Tensor]) -> None:
        """Add one to step counts, zero where the step is skipped; waits for no device that keeps them."""
        if self.found_inf is None:
            torch._foreach_add_([*steps], 1)
            return
        by_device: dict[torch.device, list[Tensor]] = {}
        for step in steps:
            by_device.setdefault(step.device, []).append(step)
        for device, counts in by_device.items():
            goes_on = (self.found_inf == 0).reshape(())
            not_read_here = device.type == "cuda"
            added = goes_on.to(device, torch.float32, non_blocking=not_read_here)
            torch._foreach_add_(counts, [added] * len(counts))  # one tensor for all would be read on the host


UNSCALED = LossScaling(None, None)
"""No scaler: the gradients are what they are."""
