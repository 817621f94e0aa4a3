"""Where does the time of a training step go?"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import riembn
from riembn import data
from riembn.training.freed_memory import keep_freed_memory
from riembn.training.motion import PROBES, Motion

from .intervals import quartiles

MEAN, STD = (0.29,), (0.35,)
PARTS = ("data", "forward", "backward", "optimizer", "measuring")


def measure_all_parts(device: torch.device, *, quick: bool = False) -> list[dict[str, Any]]:
    """The parts of a step at the book's laptop size, and of the papers' networks that the device can carry."""
    if device.type == "cpu":
        keep_freed_memory()  # as a run does
    if quick:
        return [measure_parts("vgg-11", device, width=0.125, size=512, batch=16, steps=2)]
    laptop: dict[str, Any] = {"width": 0.25, "side": 28, "channels": 1, "size": 10_000}
    found = [measure_parts("vgg-11", device, steps=50, **laptop), measure_parts("vgg-13", device)]
    return [*found, measure_parts("wrn-28-10", device)] if device.type == "cuda" else found


def measure_parts(
    network: str,
    device: torch.device,
    *,
    width: float = 1.0,
    side: int = 32,
    channels: int = 3,
    size: int = 50_000,
    batch: int = 128,
    alpha: float = 0.1,
    steps: int = 10,
) -> dict[str, Any]:
    """Seconds of each part of a step of SGD-G, with the device brought to rest between parts.

    That rest costs a GPU some of its speed, so the parts are shares, not rates. Measuring is what `riembn.train` does
    at a few steps an epoch, spread over all of them.

    Args:
        network: As in `riembn.RunConfig`.
        device: Where to train.
        width: Factor on the channels.
        side: Height and width of the random images.
        channels: Of the images.
        size: Images that batches are drawn from, and of an epoch.
        batch: Images a step.
        alpha: Strength of the orthogonality regularizer.
        steps: How many to take the medians of, after two to warm up.
    """
    chance = torch.Generator().manual_seed(0)
    stored = torch.randint(256, (size, channels, side, side), dtype=torch.uint8, generator=chance).to(device)
    labels = torch.randint(10, (size,), generator=chance).to(device)
    model = riembn.models.build(network, num_classes=10, in_channels=channels, width=width)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    example = _prepared(stored[:64])
    groups = riembn.split(model, example, rule="paper").groups()
    optimizer = riembn.build_optimizer(model, example, "sgd-g", rule="paper", alpha=alpha)
    probe = Motion(groups, grad_clip=0.1, alpha=alpha)
    clock = _clock(device)
    times: dict[str, list[float]] = {part: [] for part in PARTS}
    for number in range(steps + 2):
        started = clock()
        indices = torch.randint(size, (batch,), generator=chance).to(device)
        images = _prepared(data.reflect_crop_flip(stored[indices], generator=chance))
        loaded = clock()
        loss = functional.cross_entropy(model(images), labels[indices])
        scored = clock()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        differentiated = clock()
        optimizer.step()
        stepped = clock()
        probe.before_step()
        probe.after_step()
        probed = (clock() - stepped) * PROBES * batch / size
        if number >= 2:
            ends = (started, loaded, scored, differentiated, stepped)
            spent = [*(b - a for a, b in zip(ends, ends[1:], strict=False)), probed]
            for part, seconds in zip(PARTS, spent, strict=True):
                times[part].append(seconds)
    return {
        "network": network,
        "width": width,
        "images": f"{channels}x{side}x{side}",
        "batch": batch,
        "alpha": alpha,
        "seconds": {part: quartiles(values)["median"] for part, values in times.items()},
    }


def _clock(device: torch.device) -> Callable[[], float]:
    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


def _prepared(images: Tensor) -> Tensor:
    """A batch as a network of the book takes it."""
    channels = images.shape[1]
    normal = data.normalize(images, MEAN * channels, STD * channels)
    return normal.contiguous(memory_format=torch.channels_last)
