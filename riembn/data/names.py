"""Which data set does a name stand for, and where do its files lie?"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from .dataset import Dataset
from .digits import digits
from .image_folder import image_folder
from .published import cifar10, cifar100, fashion_mnist, svhn

__all__ = ["load"]

_PUBLISHED: dict[str, Callable[[Path], tuple[Dataset, Dataset]]] = {
    "fashion-mnist": fashion_mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "svhn": svhn,
}
_FOLDER = "imagefolder:"


def load(name: str, root: str | os.PathLike[str] | None = None) -> tuple[Dataset, Dataset]:
    """The training and the test set of a name, as they are: no normalization, no augmentation, no shuffling.

    Args:
        name: ``"digits"`` (in scikit-learn, no files), ``"fashion-mnist"``, ``"cifar10"``, ``"cifar100"``,
            ``"svhn"`` (train and extra together) or ``"imagefolder:PATH"`` (``PATH/train/CLASS/*`` and
            ``PATH/test/CLASS/*``, images of one size).
        root: Folder of the published sets' files, laid out as torchvision does, into which absent ones are
            downloaded. None stands for the environment variable ``RIEMBN_DATA``, or else ``~/.cache/riembn``.

    Returns:
        ``(train, test)``.

    Raises:
        ValueError: If the name is unknown, or a folder's images do not fit together.
        FileNotFoundError: If files are missing and cannot be downloaded; says which, and where to put them.
        ImportError: If the package that reads them is not installed.
    """
    if name == "digits":
        return digits()
    if isinstance(name, str) and name.startswith(_FOLDER) and name != _FOLDER:
        return image_folder(Path(name.removeprefix(_FOLDER)).expanduser(), name)
    if name in _PUBLISHED:
        folder = root or os.environ.get("RIEMBN_DATA") or "~/.cache/riembn"
        return _PUBLISHED[name](Path(folder).expanduser())
    accepted = ", ".join(["digits", *_PUBLISHED, _FOLDER + "PATH"])
    raise ValueError(f"load: unknown data set {name!r}; give one of {accepted}.")
