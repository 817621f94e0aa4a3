"""How much longer is a whole training step, forward and backward included, with SGD-G in place of torch's fused SGD?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import riembn

from .interleave import contest, stopwatch
from .intervals import quartiles

SGD, SGD_G = "SGD fused", "SGD-G"


def measure_training_step(device: torch.device, *, quick: bool = False, **options: Any) -> dict[str, Any]:
    """One step of VGG-13 on 128 random images of 32x32, with either optimizer, in turns.

    Both train all parameters. SGD-G (alpha = 0) takes the scale-invariant weights and leaves the rest to torch's SGD,
    as `riembn.build_optimizer` does it by default.

    Args:
        device: Where to train.
        quick: A small network and batch, to see that it works.
        options: As for `contest`.
    """
    depth, width, batch = (11, 0.125, 16) if quick else (13, 1.0, 128)
    chance = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, 32, 32, generator=chance).to(device, memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,), generator=chance).to(device)

    def trainer(optimizer_of: Callable[[nn.Module], torch.optim.Optimizer]) -> Callable[[], None]:
        torch.manual_seed(0)
        model: nn.Module = riembn.models.vgg(depth, width=width).to(device)
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = optimizer_of(model)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(model(images), labels).backward()
            optimizer.step()

        return step

    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        runners = {
            SGD: trainer(
                lambda m: torch.optim.SGD(m.parameters(), lr=1e-3, momentum=0.9, nesterov=True, fused=True)
            ),
            SGD_G: trainer(lambda m: riembn.build_optimizer(m, images, "sgd-g", lr=1e-3, rest_lr=1e-3)),
        }
    found = contest(runners, [SGD], measure=stopwatch(device), **options)
    return {
        "network": f"vgg-{depth}",
        "batch": batch,
        "seconds": {name: quartiles(list(found.seconds[name].values())) for name in runners},
        "ratio": found.ratio(SGD_G, SGD).told(),
        "rounds": found.rounds,
        "spent": round(found.spent, 1),
        "narrow": SGD_G in found.narrow,
    }
