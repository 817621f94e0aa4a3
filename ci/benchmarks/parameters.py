"""Whose weights are stepped? Convolutions of known networks, and stacks of equal rows that grow tenfold."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import riembn


@dataclass(frozen=True)
class ParameterSet:
    """Shapes of weights, rows along dimension 0."""

    name: str
    shapes: tuple[tuple[int, ...], ...]

    @property
    def parameters(self) -> int:
        return sum(map(math.prod, self.shapes))

    @property
    def rows(self) -> int:
        return sum(shape[0] for shape in self.shapes)

    @property
    def longest_row(self) -> int:
        return max(math.prod(shape[1:]) for shape in self.shapes)

    def weights(self, device: torch.device) -> list[Tensor]:
        """Unit rows, the same on each call."""
        chance = torch.Generator(device).manual_seed(0)
        drawn = [torch.randn(shape, device=device, generator=chance) for shape in self.shapes]
        return [w.div_(_norms(w)) for w in drawn]

    def gradients(self, weights: list[Tensor]) -> list[Tensor]:
        """Tangent at the weights, as a batch normalization makes them, and of length 0.05 a row."""
        chance = torch.Generator(weights[0].device).manual_seed(1)
        drawn = [torch.randn(w.shape, device=w.device, generator=chance) for w in weights]
        for g, w in zip(drawn, weights, strict=True):
            g.sub_((g * w).sum(tuple(range(1, g.dim())), keepdim=True) * w)
            g.mul_(0.05 / _norms(g))
        return drawn


def _norms(w: Tensor) -> Tensor:
    return torch.linalg.vector_norm(w, dim=tuple(range(1, w.dim())), keepdim=True)


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from riembn.data.from_torchvision import import_torchvision

        return getattr(import_torchvision().models, name)()

    return build


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vgg-13": lambda: riembn.models.vgg(13),
    "resnet-18": _torchvision("resnet18"),
    "resnet-50": _torchvision("resnet50"),
    "wrn-28-10": lambda: riembn.models.wide_resnet(28, 10),
}
"""Networks by name; their convolutions are what is stepped."""

STACKS = {f"stack-{size}": int(float(size)) for size in ("1e6", "1e7", "1e8", "3e8", "1e9")}
"""Parameters in matrices of 1,000 rows of 1,000, to see how cost grows; 3e8 for machines whose memory ends there."""


def parameter_set(name: str) -> ParameterSet:
    """The shapes a name stands for.

    Raises:
        ValueError: If there is none of that name.
        ImportError: If it needs torchvision, which is not installed.
    """
    if name in STACKS:
        return ParameterSet(name, ((1000, 1000),) * (STACKS[name] // 10**6))
    if name in NETWORKS:
        with torch.device("meta"):
            modules = NETWORKS[name]().modules()
        return ParameterSet(name, tuple(tuple(m.weight.shape) for m in modules if isinstance(m, nn.Conv2d)))
    raise ValueError(f"no parameter set {name!r}; there are {', '.join([*NETWORKS, *STACKS])}.")
