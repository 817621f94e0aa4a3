"""What does the training loop add to forward, backward and step?"""

from __future__ import annotations

import itertools
import time
from typing import Any
from unittest import mock

import torch
from torch.nn import functional

import riembn
from riembn import data
from riembn.training.loop import Run

from .intervals import median_interval, quartiles


def measure_loop(device: torch.device, *, quick: bool = False, epochs: int = 20) -> dict[str, Any]:
    """The steps of `riembn.train` against bare ones, on batches that are ready, in turns.

    The run is of the book's laptop size (VGG-11 a quarter as wide, 10,000 images of 28x28, batches of 128, SGD-G),
    augmented; its images are random, which costs the same. The loop's steps count all that it does from the epoch's
    start to the end of its last step: drawing, augmenting and normalizing batches, forward, backward, step, and what
    is measured on the way; not the evaluation. After each step of the loop comes a bare one, of the same network and
    the same optimizer: where another network's tensors lie in memory can alone make its steps a tenth slower, and so
    can what else happens to the machine within an epoch.

    Args:
        device: Where to train.
        quick: A twentieth of the images, two epochs.
        epochs: How many are measured, after one to warm up.
    """
    size, epochs = (512, 2) if quick else (10_000, epochs)
    run = laptop_run(device, size, epochs + 1)
    config = run.config
    times: dict[str, list[float]] = {"loop": [], "bare": []}
    for epoch in range(epochs + 1):
        turns = _Turns(run)
        run._epoch(epoch, turns, lambda *_: None)
        for name, values in times.items():
            values.append(turns.seconds[name])
    times = {name: values[1:] for name, values in times.items()}
    return {
        "network": config.network,
        "width": config.width,
        "batch": config.batch_size,
        "steps": size // config.batch_size,
        "seconds": {name: quartiles(values) for name, values in times.items()},
        "ratio": median_interval([a / b for a, b in zip(times["loop"], times["bare"], strict=True)]).told(),
        "rounds": epochs,
    }


def laptop_run(device: torch.device, size: int, epochs: int) -> Run:
    """The run of the book's laptop size, on so many random images."""
    config = riembn.preset("vgg-13/cifar10/sgd-g", profile="laptop", epochs=epochs, drops=(), train_size=None)
    chance = torch.Generator().manual_seed(0)
    images = torch.randint(256, (size, 1, 28, 28), dtype=torch.uint8, generator=chance)
    labels = torch.randint(10, (size,), generator=chance)
    made = data.Dataset(images, labels, tuple("0123456789"), config.dataset)
    with mock.patch.object(data, "load", return_value=(made, made.subset(slice(128)))):
        return Run(config, device, None)


class _Turns:
    """Stands for the progress bar, of which the loop tells the end of each step: then a bare step is taken."""

    def __init__(self, run: Run) -> None:
        size, made = run.config.batch_size, run.images.train
        self._run = run
        self._batches = itertools.cycle(
            [
                (run.images.scaled(made.images[start : start + size]), made.labels[start : start + size])
                for start in range(0, len(made) - size + 1, size)
            ]
        )
        self.seconds = {"loop": 0.0, "bare": 0.0}
        self._began = self._now()

    def update(self) -> None:
        ended = self._now()
        self.seconds["loop"] += ended - self._began
        images, labels = next(self._batches)
        began = self._now()
        loss = functional.cross_entropy(self._run.model(images), labels)
        self._run.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._run.optimizer.step()
        self._began = self._now()
        self.seconds["bare"] += self._began - began

    def _now(self) -> float:
        if self._run.device.type == "cuda":
            torch.cuda.synchronize(self._run.device)
        return time.perf_counter()
