"""Controls of an experiment on SGD: rows held at a length, or trained at another run's effective rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..experiment.config import RunConfig
from ..geometry import Layout
from ..invariance import Split

__all__ = ["Lengths"]

_Weights = Sequence[tuple[Tensor, Layout]]


class Lengths:
    """What the lengths of the invariant rows do, where they are not free.

    With ``lengths="frozen"`` every row keeps, from the first drop of the rate on, the length that it has then.
    With ``"replayed"`` the gradient of a row is multiplied, in each step, by its own squared length over that of
    the same row in a run with decay on it: both then train at the same effective rate lr/|w|^2.

    Args:
        config: What is asked for.
        found: The invariant weights.
        reference: Trains the run with decay and calls its argument after each step with its lengths.
    """

    def __init__(
        self, config: RunConfig, found: Split, reference: Callable[[Callable[[Tensor], None]], None]
    ) -> None:
        self._kind = config.lengths
        self._weights = _weights(found)
        self._from_epoch = config.drops[0] if config.lengths == "frozen" else 0
        self._held: Tensor | None = None
        self._replayed: list[Tensor] = []
        if config.lengths == "replayed":
            self._replayed.append(self.now())
            reference(self._replayed.append)

    @torch.no_grad()
    def now(self) -> Tensor:
        """The length of every row, shape ``(rows,)``."""
        return torch.cat([torch.linalg.vector_norm(layout.rows(p), dim=1) for p, layout in self._weights])

    @torch.no_grad()
    def before_step(self, step: int, epoch: int) -> None:
        """To be called between the gradients and the step."""
        if self._kind == "frozen" and epoch >= self._from_epoch and self._held is None:
            self._held = self.now()
        if self._kind == "replayed":
            self._scale((self.now() / self._replayed[step]).square(), of_gradients=True)

    @torch.no_grad()
    def after_step(self) -> None:
        if self._held is not None:
            self._scale(self._held / self.now(), of_gradients=False)

    def _scale(self, factors: Tensor, *, of_gradients: bool) -> None:
        counts = [len(layout.rows(p)) for p, layout in self._weights]
        for (p, layout), factor in zip(self._weights, factors.split(counts), strict=True):
            target = p.grad if of_gradients else p
            if target is not None:
                (scaled,) = layout.tensors(layout.rows(target) * factor.unsqueeze(1), target)
                target.copy_(scaled)

    def state(self) -> Tensor | None:
        """As a checkpoint keeps it."""
        return self._held

    def load(self, state: Tensor | None) -> None:
        self._held = state


def _weights(found: Split) -> _Weights:
    return [
        (p, Layout.of(group))
        for group in found.groups()
        for p in group["params"][:: 2 if group.get("joint") else 1]
    ]
