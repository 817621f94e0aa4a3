"""Where do Fashion-MNIST, CIFAR and SVHN come from? Through torchvision, downloaded once."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._torchvision import import_torchvision
from .dataset import Dataset

__all__ = ["cifar10", "cifar100", "fashion_mnist", "svhn"]

# What torchvision raises for files that are absent, damaged, not downloadable or not writable.
_UNUSABLE = (RuntimeError, OSError, ValueError, AssertionError, EOFError, pickle.UnpicklingError)


def fashion_mnist(root: Path) -> tuple[Dataset, Dataset]:
    """Fashion-MNIST: 60,000 and 10,000 grey images of 28x28."""
    stems = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    files = f"FashionMNIST/raw/ with {', '.join(stem + '-ubyte' for stem in stems)} (or these as .gz)"
    train, test = (
        _open("fashion-mnist", "FashionMNIST", root, files, train=train) for train in (True, False)
    )
    return _pair("fashion-mnist", train.classes, lambda s: (s.data.unsqueeze(1), s.targets), [train], test)


def cifar10(root: Path) -> tuple[Dataset, Dataset]:
    """CIFAR-10: 50,000 and 10,000 color images of 32x32."""
    return _cifar("cifar10", "CIFAR10", root, "cifar-10-batches-py/ (or cifar-10-python.tar.gz)")


def cifar100(root: Path) -> tuple[Dataset, Dataset]:
    """CIFAR-100 with its fine labels: 50,000 and 10,000 color images of 32x32."""
    return _cifar("cifar100", "CIFAR100", root, "cifar-100-python/ (or cifar-100-python.tar.gz)")


def svhn(root: Path) -> tuple[Dataset, Dataset]:
    """SVHN's cropped digits as the papers use them: train and extra together, 604,388, and 26,032 of 32x32."""
    files = "train_32x32.mat, extra_32x32.mat and test_32x32.mat"
    train, extra, test = (
        _open("svhn", "SVHN", root, files, split=split) for split in ("train", "extra", "test")
    )
    digits = [str(digit) for digit in range(10)]
    return _pair("svhn", digits, lambda s: (torch.from_numpy(s.data), s.labels), [train, extra], test)


def _cifar(name: str, class_name: str, root: Path, files: str) -> tuple[Dataset, Dataset]:
    train, test = (_open(name, class_name, root, files, train=train) for train in (True, False))
    # torchvision turns the channels last, the files have them first.
    return _pair(
        name, train.classes, lambda s: (torch.from_numpy(s.data).movedim(3, 1), s.targets), [train], test
    )


def _pair(
    name: str, classes: list[str], read: Callable[[Any], tuple[Tensor, Any]], train: list[Any], test: Any
) -> tuple[Dataset, Dataset]:
    def dataset(sources: list[Any]) -> Dataset:
        images, labels = zip(*map(read, sources), strict=True)
        stacked = torch.cat(images) if len(images) > 1 else images[0].contiguous()
        return Dataset(stacked, torch.cat([torch.as_tensor(y).long() for y in labels]), tuple(classes), name)

    return dataset(train), dataset([test])


def _open(name: str, class_name: str, root: Path, files: str, **part: Any) -> Any:
    """A torchvision data set as it lies in ``root``; downloaded there (md5 checked by torchvision) if absent."""
    dataset_class = getattr(import_torchvision().datasets, class_name)
    try:
        return dataset_class(root, download=False, **part)
    except _UNUSABLE:
        pass
    from filelock import FileLock  # comes with torch

    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".riembn-download.lock"):  # runs of a sweep start together
            return dataset_class(root, download=True, **part)
    except _UNUSABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FileNotFoundError(
            f"load({name!r}): no usable files in {root} and no download ({reason}); put {files} there, or name "
            "the folder that has them by root= or the environment variable RIEMBN_DATA."
        ) from error
