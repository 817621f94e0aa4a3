"""Where do Fashion-MNIST, CIFAR and SVHN come from? Through torchvision, downloaded once."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .dataset import Dataset
from .from_torchvision import import_torchvision

__all__ = ["cifar10", "cifar100", "fashion_mnist", "svhn"]

# What torchvision raises for files that are absent, damaged, not downloadable or not writable.
_UNUSABLE = (RuntimeError, OSError, ValueError, AssertionError, EOFError, pickle.UnpicklingError)


def fashion_mnist(root: Path) -> tuple[Dataset, Dataset]:
    """Fashion-MNIST: 60,000 and 10,000 gray images of 28x28."""
    stems = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    files = f"FashionMNIST/raw/ with {', '.join(stem + '-ubyte' for stem in stems)} (or these as .gz)"

    def part(train: bool) -> Dataset:
        source = _open("fashion-mnist", "FashionMNIST", root, files, train=train)
        return _dataset("fashion-mnist", source.classes, source.data.unsqueeze(1), source.targets)

    return part(True), part(False)


def cifar10(root: Path) -> tuple[Dataset, Dataset]:
    """CIFAR-10: 50,000 and 10,000 color images of 32x32."""
    return _cifar("cifar10", "CIFAR10", root, "cifar-10-batches-py/ (or cifar-10-python.tar.gz)")


def cifar100(root: Path) -> tuple[Dataset, Dataset]:
    """CIFAR-100 with its fine labels: 50,000 and 10,000 color images of 32x32."""
    return _cifar("cifar100", "CIFAR100", root, "cifar-100-python/ (or cifar-100-python.tar.gz)")


def svhn(root: Path) -> tuple[Dataset, Dataset]:
    """SVHN's cropped digits as the papers use them: 604,388 (train, then extra) and 26,032 images of 32x32.

    Label d is digit d, as torchvision has it; the files say 10 for the digit 0.
    """
    files = "train_32x32.mat, extra_32x32.mat and test_32x32.mat"

    def part(*splits: str) -> Dataset:
        sources = [_open("svhn", "SVHN", root, files, split=split) for split in splits]
        images = torch.cat([torch.from_numpy(source.data) for source in sources])
        labels = torch.cat([torch.from_numpy(source.labels) for source in sources])
        return _dataset("svhn", [str(digit) for digit in range(10)], images, labels)

    return part("train", "extra"), part("test")


def _cifar(name: str, class_name: str, root: Path, files: str) -> tuple[Dataset, Dataset]:
    def part(train: bool) -> Dataset:
        source = _open(name, class_name, root, files, train=train)
        images = torch.from_numpy(source.data).movedim(3, 1)  # torchvision puts the channels last
        return _dataset(name, source.classes, images, source.targets)

    return part(True), part(False)


def _dataset(name: str, classes: Sequence[str], images: Tensor, labels: Any) -> Dataset:
    return Dataset(images.contiguous(), torch.as_tensor(labels, dtype=torch.int64), tuple(classes), name)


def _open(name: str, class_name: str, root: Path, files: str, **part: Any) -> Any:
    """A torchvision data set as it lies in ``root``, or else downloaded there; torchvision checks the md5."""
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
            f"load({name!r}): no usable files in {root} and no download ({reason}); put {files} there, "
            "or name the folder that has them by root= or the environment variable RIEMBN_DATA."
        ) from error
