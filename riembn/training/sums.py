"""What an epoch has come to so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .devices import Devices


@dataclass
class Sums:
    """Losses and errors of an epoch's steps; asked for as rarely as can be, since asking a device waits for it."""

    loss: float = 0.0
    wrong: int = 0
    bad: int = -1  # the first step whose loss was not finite
    steps: int = 0
    seconds: float = 0.0
    _unread: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)

    def add(self, loss: Tensor, wrong: Tensor, step: int) -> None:
        """Count a batch, or a part of one, of step number ``step``."""
        self._unread.append((step, loss, wrong))

    def read(self) -> Sums:
        """Itself, with all that was added. One by one, so that sums do not depend on when they are asked for."""
        if self._unread:
            steps, losses, wrongs = zip(*self._unread, strict=True)
            for step, loss, wrong in zip(
                steps, torch.stack(losses).tolist(), torch.stack(wrongs).tolist(), strict=True
            ):
                self.loss += loss
                self.wrong += wrong
                if self.bad < 0 and not math.isfinite(loss):
                    self.bad = step
            self._unread = []
        return self

    def end(self, step: int) -> None:
        """Let the run end at a step as at one whose loss is not finite, if none was before."""
        if self.read().bad < 0:
            self.bad = step

    def over(self, devices: Devices) -> Sums:
        """The same of all devices."""
        own = self.read()
        if devices.count == 1:
            return own
        late = torch.iinfo(torch.int64).max
        loss, wrong, bad = (
            torch.tensor(value, device=devices.device, dtype=dtype)
            for value, dtype in (
                (own.loss, torch.float64),
                (own.wrong, torch.int64),
                (own.bad if own.bad >= 0 else late, torch.int64),
            )
        )
        first = int(devices.least(bad))
        return Sums(
            loss=float(devices.total(loss)),
            wrong=int(devices.total(wrong)),
            bad=-1 if first == late else first,
            steps=own.steps,
            seconds=own.seconds,
        )

    def state(self) -> dict[str, Any]:
        """As a checkpoint keeps it."""
        own = self.read()
        return {name: getattr(own, name) for name in ("loss", "wrong", "bad", "steps", "seconds")}

    @classmethod
    def of(cls, state: Mapping[str, Any], *, counted: bool = True) -> Sums:
        """The inverse of `state`; without what was counted (``counted=False``) only how far the epoch is."""
        far = cls(bad=int(state["bad"]), steps=state["steps"], seconds=state["seconds"])
        if counted:
            far.loss, far.wrong = float(state["loss"]), int(state["wrong"])
        return far
