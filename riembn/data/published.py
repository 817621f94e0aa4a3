"""Fashion-MNIST, CIFAR and SVHN: only the published bytes, through torchvision downloaded once."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .dataset import Dataset
from .from_torchvision import import_torchvision
from .image_folder import content_digest, image_folder

# md5 of the unpacked files, which torchvision does not check.
FASHION_MNIST = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}

# `content_digest` of the folder with which the book's runs were made.
CIFAR10_JPEG = "406b2dc4a99b3d68"

# What torchvision raises for files that are absent, damaged, not downloadable or not writable.
_UNUSABLE = (RuntimeError, OSError, ValueError, AssertionError, EOFError, pickle.UnpicklingError)


def fashion_mnist(root: Path) -> tuple[Dataset, Dataset]:
    """Fashion-MNIST: 60,000 and 10,000 gray images of 28x28."""
    files = f"FashionMNIST/raw/ with {', '.join(FASHION_MNIST)} (or these as .gz)"
    check_files("fashion-mnist", root, [(f"FashionMNIST/raw/{file}", md5) for file, md5 in FASHION_MNIST.items()])

    def part(train: bool) -> Dataset:
        source = _open("fashion-mnist", "FashionMNIST", root, files, train=train)
        return _dataset("fashion-mnist", source.classes, source.data.unsqueeze(1), source.targets)

    return part(True), part(False)


def cifar10(root: Path) -> tuple[Dataset, Dataset]:
    """CIFAR-10: 50,000 and 10,000 color images of 32x32."""
    return _cifar("cifar10", "CIFAR10", root, "cifar-10-batches-py/ (or cifar-10-python.tar.gz)")


def cifar10_jpeg(root: Path) -> tuple[Dataset, Dataset]:
    """CIFAR-10's images, each encoded anew as JPEG of quality 75 with halved chroma.

    They lie in ``cifar10-jpeg/train/CLASS/*.jpg`` and ``cifar10-jpeg/test/CLASS/*.jpg``. It is a data
    set of its own: errors on it are not those of CIFAR-10. Nothing downloads it.
    """
    folder = root / "cifar10-jpeg"
    if (found := content_digest(folder)) != CIFAR10_JPEG:
        raise ValueError(
            f"load('cifar10-jpeg'): {folder} holds other files (content {found}) than the book's runs had "
            f"({CIFAR10_JPEG}); put those there, or name your own by imagefolder:PATH."
        )
    return image_folder(folder, "cifar10-jpeg")


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
        check_files(name, root, _md5_of_files(dataset_class))
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


def _md5_of_files(dataset_class: Any) -> list[tuple[str, str]]:
    """Path below the folder and md5 of each file that torchvision knows: the archives and what is in them."""
    if hasattr(dataset_class, "split_list"):  # SVHN
        return [(file, md5) for _, file, md5 in dataset_class.split_list.values()]
    if hasattr(dataset_class, "resources"):  # Fashion-MNIST
        return [(f"{dataset_class.__name__}/raw/{file}", md5) for file, md5 in dataset_class.resources]
    meta = (dataset_class.meta["filename"], dataset_class.meta["md5"])
    inside = [*dataset_class.train_list, *dataset_class.test_list, meta]
    folder = dataset_class.base_folder
    return [*((f"{folder}/{file}", md5) for file, md5 in inside), (dataset_class.filename, dataset_class.tgz_md5)]


def check_files(name: str, root: Path, wanted: Sequence[tuple[str, str]]) -> None:
    """Refuse a file that is there and is not the published one; absent ones are passed over."""
    for file, md5 in wanted:
        if (root / file).is_file() and (found := hashlib.md5((root / file).read_bytes()).hexdigest()) != md5:
            with (root / file).open("rb") as opened:
                start = opened.read(1)
            what = {b"": "is empty", b"<": "is a web page"}.get(start, "is damaged or another data set's")
            raise ValueError(
                f"load({name!r}): {root / file} {what} (md5 {found}, published {md5}); remove it, so that it is "
                "downloaded, or put the published file there."
            )
