"""What does SGD-G cost as one would write it first? One torch operation a term, one weight after the other."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class EagerSGDG:
    """SGD-G in plain PyTorch, all rows of a weight at once: our own text, for comparison only.

    It computes what `riembn.SGDG` computes for ordinary gradients, makes a new tensor for each term as eager code
    does, and has none of the care for rows that are zero, tiny or huge.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.2,
        momentum: float = 0.9,
        grad_clip: float = 0.1,
    ) -> None:
        self.params = list(params)
        self.state = {p: {"momentum_buffer": torch.zeros_like(p)} for p in self.params}
        self.lr, self.momentum, self.grad_clip = lr, momentum, grad_clip

    @torch.no_grad()
    def step(self) -> None:
        for p in self.params:
            assert p.grad is not None
            tau = self.state[p]["momentum_buffer"]
            weight, g, carried = p.flatten(1), p.grad.flatten(1), tau.flatten(1)
            y = weight / weight.norm(dim=1, keepdim=True)
            h = g - (y * g).sum(1, keepdim=True) * y
            h = h * (self.grad_clip / (h.norm(dim=1, keepdim=True) + 1e-12)).clamp(max=1)
            d = self.momentum * carried - self.lr * h
            angle = d.norm(dim=1, keepdim=True)
            direction = d / (angle + 1e-12)
            p.copy_((y * angle.cos() + direction * angle.sin()).view_as(p))
            tau.copy_((d * angle.cos() - y * angle * angle.sin()).view_as(p))
