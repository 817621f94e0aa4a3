"""Who takes a step? torch's optimizers, this package's, and peers, each in every path it has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import riembn

from .eager import EagerSGDG

Build = Callable[[list[Tensor], list[Tensor]], Any]
PATHS: dict[str, dict[str, bool]] = {"fused": {"fused": True}, "foreach": {"foreach": True}, "loop": {}}
LR = 1e-7  # rows stay where they started: at thousands of steps against one gradient they would end along it


@dataclass(frozen=True)
class Contestant:
    """An optimizer on one path, and the bytes that its method has to move for a float32 parameter.

    Weight, gradient and each buffer of the weights' size are read once; all but the gradient are written once.
    """

    method: str
    library: str
    path: str
    bytes_per_parameter: int
    build: Build

    @property
    def name(self) -> str:
        if self.library == "plain eager":
            return f"{self.method} plain eager"
        return (
            f"{self.method} {self.path}"
            if self.library in ("torch", "riembn")
            else f"{self.library} {self.method}"
        )


def _torch(method: type[torch.optim.Optimizer], path: str, **options: Any) -> Build:
    options |= PATHS[path] or {"foreach": False, "fused": False}
    return lambda weights, grads: method(_parameters(weights, grads), **options)


def _riembn(method: type[torch.optim.Optimizer], path: str, **options: Any) -> Build:
    options |= PATHS[path] or {"foreach": False}
    return lambda weights, grads: method(_parameters(weights, grads), **options)


def _geoopt(method: str, **options: Any) -> Build:
    def build(weights: list[Tensor], grads: list[Tensor]) -> Any:
        import geoopt

        sphere = geoopt.Sphere()
        points = [geoopt.ManifoldParameter(w.flatten(1).clone(), manifold=sphere) for w in weights]
        for point, grad in zip(points, grads, strict=True):
            point.grad = grad.flatten(1)
        return getattr(geoopt.optim, method)(points, **options)

    return build


def _adamp(method: str, **options: Any) -> Build:
    def build(weights: list[Tensor], grads: list[Tensor]) -> Any:
        import adamp

        # A rate at which the weights stay orthogonal to the gradient, so that they are projected as in training.
        return getattr(adamp, method)(_parameters(weights, grads), lr=1e-9, **options)

    return build


def _parameters(weights: list[Tensor], grads: list[Tensor]) -> list[torch.nn.Parameter]:
    """Weights of their own with gradients that all share: none writes to them."""
    parameters = [torch.nn.Parameter(w.clone()) for w in weights]
    for p, grad in zip(parameters, grads, strict=True):
        p.grad = grad
    return parameters


def _every() -> list[Contestant]:
    found = []
    for path in PATHS:
        sgd, adam = torch.optim.SGD, torch.optim.Adam
        found += [
            Contestant("SGD", "torch", path, 20, _torch(sgd, path, lr=LR, momentum=0.9)),
            Contestant("Adam", "torch", path, 28, _torch(adam, path, lr=LR)),
            Contestant("SGD-G", "riembn", path, 20, _riembn(riembn.SGDG, path, lr=LR)),
            Contestant("Adam-G", "riembn", path, 20, _riembn(riembn.AdamG, path, lr=LR)),
            Contestant("PSI-SGD", "riembn", path, 20, _riembn(riembn.PSISGD, path, lr=LR, momentum=0.9)),
        ]
    return [
        *found,
        Contestant("SGD-G", "plain eager", "loop", 20, lambda w, g: EagerSGDG(_parameters(w, g), lr=LR)),
        Contestant("RiemannianSGD", "geoopt", "loop", 20, _geoopt("RiemannianSGD", lr=LR, momentum=0.9)),
        Contestant("RiemannianAdam", "geoopt", "loop", 28, _geoopt("RiemannianAdam", lr=LR)),
        Contestant("SGDP", "adamp", "loop", 20, _adamp("SGDP", momentum=0.9)),
        Contestant("AdamP", "adamp", "loop", 28, _adamp("AdamP")),
    ]


CONTESTANTS = {contestant.name: contestant for contestant in _every()}
BASES = ("SGD fused", "Adam fused", "SGD-G fused", "Adam-G fused")
"""The fastest of torch and of this package, which all are compared with."""
FUSED = (*BASES, "PSI-SGD fused")
"""Who steps the stacks that show how cost grows."""
