"""The table of data sets, and one data set by its name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ..open_table import OpenTable
from .dataset import Dataset
from .digits import digits
from .image_folder import content_digest as folder_digest
from .image_folder import image_folder
from .published import cifar10, cifar10_jpeg, cifar100, fashion_mnist, svhn

Load = Callable[[Path], tuple[Dataset, Dataset]]

_FOLDER = "imagefolder:"


class Datasets(OpenTable[Load]):
    """Names of data sets, and what loads them: ``datasets["kmnist"] = load_kmnist`` adds one.

    It is called as ``load_kmnist(root)`` with the folder of `load` and returns ``(train, test)``, two
    `riembn.data.Dataset` of the same classes and images of the same shape. ``imagefolder:PATH`` is a name
    without an entry.

    Raises:
        ValueError: When the package's own entry would be replaced, or a name is spelled as none may be.
        TypeError: When an entry cannot be called.
    """

    def __setitem__(self, name: str, load: Load) -> None:
        if not callable(load):
            raise TypeError(f"riembn: data set {name!r} is {load!r}; give a function load(root).")
        super().__setitem__(name, load)

    @property
    def accepted(self) -> str:
        """The names there are, as errors say them."""
        return f"one of {', '.join(self)}, or {_FOLDER}PATH"

    def check(self, name: str) -> None:
        """Refuse what names no data set, in one line: ``dataset=… is not accepted; give …``.

        Raises:
            ValueError: If there is no such name.
        """
        if not isinstance(name, str) or not (name in self or _folder(name)):
            raise ValueError(f"dataset={name!r} is not accepted; give {self.accepted}.")


datasets = Datasets(
    "data set",
    {
        "digits": lambda root: digits(),
        "fashion-mnist": fashion_mnist,
        "cifar10": cifar10,
        "cifar10-jpeg": cifar10_jpeg,
        "cifar100": cifar100,
        "svhn": svhn,
    },
)


def load(name: str, root: str | os.PathLike[str] | None = None) -> tuple[Dataset, Dataset]:
    """The training and the test set of a name, as they are: no normalization, no augmentation, no shuffling.

    Args:
        name: A name of `riembn.datasets`: ``"digits"`` (in scikit-learn, no files), ``"fashion-mnist"``,
            ``"cifar10"``, ``"cifar10-jpeg"``, ``"cifar100"``, ``"svhn"`` (train and extra together) or one that was
            added; or ``"imagefolder:PATH"`` (``PATH/train/CLASS/*`` and ``PATH/test/CLASS/*``, images of one size).
        root: Folder of the published sets' files, laid out as torchvision does, into which absent ones are
            downloaded. None stands for the environment variable ``RIEMBN_DATA``, or else ``~/.cache/riembn``.

    Returns:
        ``(train, test)``.

    Raises:
        ValueError: If the name is unknown, a file is damaged, or images do not fit together.
        FileNotFoundError: If files are missing and cannot be downloaded; says which, and where to put them.
        ImportError: If the package that reads them is not installed.
        TypeError: If what was added to the table returns something else.
    """
    try:
        datasets.check(name)
    except ValueError as error:
        raise ValueError(f"load: {error}") from None
    if folder := _folder(name):
        return image_folder(folder, name)
    parts = datasets[name](Path(root or os.environ.get("RIEMBN_DATA") or "~/.cache/riembn").expanduser())
    if name in datasets.added:
        _check_added(name, parts)
    return parts


def content_digest(name: str) -> str | None:
    """Sixteen hexadecimal digits that name what a folder of images holds; None for any other data set.

    They cover names and bytes of the files that `load` reads, and not where the folder lies. The hashes of the
    files are kept in ``~/.cache/riembn`` (or where ``XDG_CACHE_HOME`` says) and computed anew for a file whose
    size or time of change is another.

    Raises:
        FileNotFoundError, ValueError: As `load` for a folder that it refuses by its names.
    """
    folder = _folder(name)
    return folder_digest(folder) if folder else None


def _folder(name: str) -> Path | None:
    path = name.removeprefix(_FOLDER) if name.startswith(_FOLDER) else ""
    return Path(path).expanduser() if path else None


def _check_added(name: str, parts: object) -> None:
    if not (isinstance(parts, tuple | list) and len(parts) == 2 and all(isinstance(p, Dataset) for p in parts)):
        given = type(parts).__name__
        raise TypeError(f"load: data set {name!r} came as {given}; return (train, test), each a riembn.data.Dataset.")
    train, test = parts
    for what, of_train, of_test in (
        ("classes", train.classes, test.classes),
        ("an image's shape", tuple(train.images.shape[1:]), tuple(test.images.shape[1:])),
    ):
        if of_train != of_test:
            raise ValueError(f"load: data set {name!r} has {what} {of_train} in train, {of_test} in test; make it one.")
    for part, which in ((train, "train"), (test, "test")):
        if not len(part):
            raise ValueError(f"load: data set {name!r} has no images in {which}; give some.")
        low, high = int(part.labels.min()), int(part.labels.max())
        if low < 0 or high >= len(part.classes):
            raise ValueError(
                f"load: data set {name!r} has labels {low} to {high} in {which} and {len(part.classes)} classes; "
                f"give labels 0 to {len(part.classes) - 1}."
            )
