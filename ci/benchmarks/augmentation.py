"""How fast do augmented batches come: made on the device from tensors, or by a DataLoader from single images?"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from riembn import data
from riembn.data.from_torchvision import import_torchvision

from .interleave import contest, stopwatch
from .intervals import quartiles

DEVICE, LOADER = "on the device", "DataLoader"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
BATCH, WORKERS, PADDING = 128, 2, 4


class _Images(Dataset[Any]):
    """Images as torchvision's CIFAR-10 gives them, one at a time."""

    def __init__(self, images: Tensor) -> None:
        chain = import_torchvision().transforms
        self._pixels = images.movedim(1, 3).contiguous().cpu().numpy()
        self._transform = chain.Compose(
            [
                chain.RandomCrop(images.shape[-1], padding=PADDING, padding_mode="reflect"),
                chain.RandomHorizontalFlip(),
                chain.ToTensor(),
                chain.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> Any:
        from PIL import Image

        return self._transform(Image.fromarray(self._pixels[index]))


def measure_augmentation(device: torch.device, *, quick: bool = False, **options: Any) -> dict[str, Any]:
    """Images a second in whole passes over random data of CIFAR-10's size, in batches of 128.

    Both shuffle, pad by reflection, crop, flip and normalize. The DataLoader has two workers, which stay alive from
    pass to pass, and copies its batches to the device.

    Args:
        device: Where batches are wanted.
        quick: A hundredth of the images, to see that it works.
        options: As for `contest`.
    """
    count = 512 if quick else 50_000
    chance = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=chance)
    loader: DataLoader[Any] = DataLoader(
        _Images(images), BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True
    )
    runners = {DEVICE: _on_device(images.to(device)), LOADER: lambda: [batch.to(device) for batch in loader]}
    found = contest(runners, [LOADER], call_seconds=0, measure=stopwatch(device), **options)
    with contextlib.suppress(AttributeError):
        loader._iterator._shutdown_workers()  # type: ignore[union-attr]  # before the next measurement begins
    rates = {name: quartiles([count / t for t in found.seconds[name].values()]) for name in runners}
    return {
        "images": count,
        "batch": BATCH,
        "workers": WORKERS,
        "images_per_second": rates,
        "speedup": found.ratio(LOADER, DEVICE).told(),
        "rounds": found.rounds,
    }


def _on_device(images: Tensor) -> Callable[[], object]:
    chance = torch.Generator(images.device).manual_seed(0)

    def run() -> None:
        order = torch.randperm(len(images), generator=chance, device=images.device)
        for indices in order.split(BATCH):
            cropped = data.reflect_crop_flip(images[indices], padding=PADDING, generator=chance)
            data.normalize(cropped, MEAN, STD)

    return run
