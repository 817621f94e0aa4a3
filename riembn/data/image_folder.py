"""How does a folder of image files become a data set?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .dataset import Dataset

__all__ = ["image_folder"]

_ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_GRAY = {"1", "L", "LA"}
_COLOR = {"P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}  # Pillow's others have more than 8 bits a channel


def image_folder(path: Path, name: str) -> tuple[Dataset, Dataset]:
    """``path/train/CLASS/*`` and ``path/test/CLASS/*``, classes and files in the order of their sorted names.

    Images have one channel if every one in both parts is stored as gray, else three (RGB); transparency is
    dropped. Files that do not end like an image (``.jpg``, ``.png``, …) are passed over.

    Args:
        path: The folder.
        name: What the data sets are called.

    Raises:
        FileNotFoundError: If a part or all its images are missing.
        ValueError: If a class is only in test or empty in train, a file is not an 8-bit image, or an image's
            size is not that of the first.
        ImportError: If Pillow or numpy is not installed.
    """
    train, test = _listed(path / "train"), _listed(path / "test")
    classes = tuple(train)
    if alone := [c for c in test if c not in train]:
        raise ValueError(f"load: {path / 'test' / alone[0]} has no like in train; give train every class.")
    if empty := [c for c in classes if not train[c]]:
        raise ValueError(f"load: {path / 'train' / empty[0]} has no images; add some or remove the folder.")
    files, labels = [], []
    for part in (train, test):
        files += [file for listed in part.values() for file in listed]
        labels += [classes.index(c) for c, listed in part.items() for _ in listed]
    count = sum(map(len, train.values()))
    whole = Dataset(_decoded(files), torch.tensor(labels), classes, name)
    return whole.subset(slice(None, count)), whole.subset(slice(count, None))


def _listed(part: Path) -> dict[str, list[Path]]:
    """The image files of each class folder."""
    folders = sorted(child.name for child in part.iterdir() if child.is_dir()) if part.is_dir() else []
    listed = {}
    for folder in folders:
        names = sorted(os.listdir(part / folder))
        listed[folder] = [part / folder / name for name in names if Path(name).suffix.lower() in _ENDINGS]
    if not any(listed.values()):
        raise FileNotFoundError(f"load: no images in {part}; put them there as CLASS/FILE, for each class.")
    return listed


def _decoded(files: list[Path]) -> Tensor:
    """All files as one uint8 tensor ``(n, channels, height, width)``."""
    try:
        import numpy as np
        import PIL  # noqa: F401
    except ImportError as error:
        raise ImportError(f'{error.name} is missing; run: pip install "riembn[experiment]"') from error
    first = _opened(files[0])
    pixels = np.empty((len(files), first.height, first.width, 3), np.uint8)
    all_gray = True
    # One after the other: threads make small images slower, because Pillow spends most of the time outside of
    # the decoding, under the interpreter's lock.
    for i, file in enumerate(files):
        image = _opened(file)
        if image.size != first.size:
            given, wanted = (f"{size[0]}x{size[1]}" for size in (image.size, first.size))
            raise ValueError(f"load: {file} is {given} pixels and {files[0]} {wanted}; make all one size.")
        gray = image.mode in _GRAY
        all_gray &= gray
        array = np.asarray(image.convert("L" if gray else "RGB"))
        pixels[i] = array[:, :, None] if gray else array
    return torch.from_numpy(pixels)[..., : 1 if all_gray else 3].movedim(3, 1).contiguous()


def _opened(file: Path) -> Any:
    from PIL import Image

    try:
        with Image.open(file) as image:
            image.load()
    except (OSError, EOFError, SyntaxError, ValueError) as error:  # Pillow's ways to say: damaged
        raise ValueError(f"load: {file} cannot be read ({error}); repair or remove it.") from error
    if image.mode not in _GRAY | _COLOR:
        raise ValueError(f"load: {file} has Pillow's mode {image.mode}; give images of 8 bits a channel.")
    return image
