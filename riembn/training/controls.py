"""Controls of an experiment on SGD: rows held at a length, or trained at another run's effective rate."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..experiment.config import RunConfig
from ..geometry import scale_rows, weights_of
from ..invariance import Split


class Lengths:
    """What the lengths of the invariant rows do, where they are not free.

    With ``lengths="frozen"`` every row keeps, from the first drop of the rate on, the length that it has then.
    With ``"replayed"`` the gradient of a row is multiplied, in each step, by its own squared length over that of
    the same row in a run with decay on it: both then train at the same effective rate lr/|w|^2.

    Args:
        config: What is asked for.
        found: The invariant weights.
        reference: Trains the run with decay, calls its argument after each step with its lengths, and returns the
            step at which it diverged, if any: there ends what replays it.
    """

    def __init__(
        self, config: RunConfig, found: Split, reference: Callable[[Callable[[Tensor], None]], int | None]
    ) -> None:
        self._kind = config.lengths
        self._weights = weights_of(found.groups())
        self._from_epoch = config.drops[0] if config.lengths == "frozen" else 0
        self._held: Tensor | None = None
        self._replayed: list[Tensor] = []
        if config.lengths == "replayed":
            self._replayed.append(self.now())
            diverged = reference(self._replayed.append)
            del self._replayed[len(self._replayed) if diverged is None else diverged :]

    @torch.no_grad()
    def now(self) -> Tensor:
        """The length of every row, shape ``(rows,)``."""
        return torch.cat([torch.linalg.vector_norm(layout.rows(*own), dim=1) for own, layout in self._weights])

    def before_step(self, step: int, epoch: int) -> bool:
        """To be called between the gradients and the step; false if the reference had no such step to replay."""
        if self._kind == "frozen" and epoch >= self._from_epoch and self._held is None:
            self._held = self.now()
        if self._kind == "replayed":
            if step >= len(self._replayed):
                return False
            self._scale((self.now() / self._replayed[step]).square(), of_gradients=True)
        return True

    def after_step(self) -> None:
        if self._held is not None:
            self._scale(self._held / self.now(), of_gradients=False)

    def _scale(self, factors: Tensor, *, of_gradients: bool) -> None:
        counts = [layout.row_count(own[0]) for own, layout in self._weights]
        for (own, layout), factor in zip(self._weights, factors.split(counts), strict=True):
            if of_gradients:
                own = tuple(torch.zeros_like(p) if p.grad is None else p.grad for p in own)
            scale_rows(own, layout, factor)

    def state(self) -> Tensor | None:
        """As a checkpoint keeps it."""
        return self._held

    def load(self, state: Tensor | None) -> None:
        self._held = None if state is None else state.to(self._weights[0][0][0].device)
