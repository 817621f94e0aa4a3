"""What does the training loop add to forward, backward and step?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional

import riembn
from riembn import data
from riembn.experiment.stream import epoch_batches

from .interleave import stopwatch
from .intervals import median_interval, quartiles

__all__ = ["measure_loop"]

MEAN, STD = (0.29,), (0.35,)


def measure_loop(device: torch.device, *, quick: bool = False, rounds: int = 15) -> dict[str, Any]:
    """An epoch of `riembn.train` against the same steps alone, on batches that are ready, in turns.

    The run is of the book's laptop size (VGG-11 a quarter as wide, 10,000 images of 28x28, batches of 128, SGD-G),
    augmented; its images are random, which costs the same. Its time is the record's ``seconds``: drawing, augmenting
    and normalizing batches, forward, backward, step, and all that is measured on the way, but no evaluation. Each
    turn trains one epoch after one for warming up.

    Args:
        device: Where to train.
        quick: A hundredth of the images, two turns.
        rounds: Turns.
    """
    size, rounds = (512, 2) if quick else (10_000, rounds)
    config = riembn.preset("vgg-13/cifar10/sgd-g", profile="laptop", epochs=2, drops=(), train_size=None)
    chance = torch.Generator().manual_seed(0)
    images = torch.randint(256, (size, 1, 28, 28), dtype=torch.uint8, generator=chance)
    labels = torch.randint(10, (size,), generator=chance)
    made = data.Dataset(images, labels, tuple("0123456789"), config.dataset)
    bare = _bare(config, made.to(device))

    pairs = []
    for _ in range(rounds):
        with mock.patch.object(data, "load", return_value=(made, made.subset(slice(128)))):
            record = riembn.train(config, device=device, progress=False)
        pairs.append((record.columns["seconds"][-1], bare()))
    times = {"loop": [a for a, _ in pairs], "bare": [b for _, b in pairs]}
    return {
        "network": config.network,
        "width": config.width,
        "batch": config.batch_size,
        "steps": size // config.batch_size,
        "seconds": {name: quartiles(values) for name, values in times.items()},
        "ratio": median_interval([a / b for a, b in pairs]).told(),
        "rounds": rounds,
    }


def _bare(config: riembn.RunConfig, made: data.Dataset) -> Callable[[], float]:
    """The seconds of an epoch's forward, backward and step, after an epoch to warm up."""
    device = made.images.device
    order = epoch_batches(0, size=len(made), batch_size=config.batch_size, seed=config.seed).to(device)
    batches = [(prepared(made.images[i]), made.labels[i]) for i in order]
    step = trainer(config, batches[0][0])
    elapsed = stopwatch(device)

    def epoch() -> None:
        for images, labels in batches:
            step(images, labels)

    epoch()
    return lambda: elapsed(epoch, 1)


def prepared(images: Tensor) -> Tensor:
    """A batch as a network of the book takes it."""
    channels = images.shape[1]
    normal = data.normalize(images, MEAN * channels, STD * channels)
    return normal.contiguous(memory_format=torch.channels_last)


def trainer(config: riembn.RunConfig, example: Tensor) -> Callable[[Tensor, Tensor], None]:
    """One step of a run with SGD-G, and nothing else."""
    with torch.random.fork_rng([example.device] if example.is_cuda else []):
        torch.manual_seed(config.seed)
        model = riembn.models.build(
            config.network, num_classes=10, in_channels=example.shape[1], width=config.width
        )
    model = model.to(example.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = riembn.build_optimizer(
        model,
        example,
        "sgd-g",
        rule=config.rule,
        lr=config.lr,
        momentum=config.momentum,
        grad_clip=config.grad_clip,
        alpha=config.alpha,
        rest_lr=config.rest_lr,
        rest_weight_decay=config.weight_decay,
    )

    def step(images: Tensor, labels: Tensor) -> None:
        scores = model(images)
        loss = functional.cross_entropy(scores, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step
