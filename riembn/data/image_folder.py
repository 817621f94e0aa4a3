"""A folder of image files as a data set."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .dataset import Dataset
from .folder_cache import contents, decoded_once

_ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_GRAY = {"1", "L", "LA"}
_COLOR = {"P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}  # Pillow's others have more than 8 bits a channel
_NOT_DATA = {"__MACOSX", "@eaDir"}  # what macOS's archives and Synology's disks put beside files

Classes = dict[str, list[str]]  # the files of each, below the folder


def image_folder(path: Path, name: str) -> tuple[Dataset, Dataset]:
    """``path/train/CLASS/**`` and ``path/test/CLASS/**``, classes and files in the order of their sorted names.

    Images have one channel if every one in both parts is stored as gray, else three (RGB); transparency is
    dropped. Passed over are files that do not end like an image (``.jpg``, ``.png``, …), and files and folders
    that are hidden (``.ipynb_checkpoints``, ``._1.png``) or called ``__MACOSX`` or ``@eaDir``. The pixels of a
    folder of 1,000 files and more are decoded once and kept in ``~/.cache/riembn``, up to 1 GiB.

    Args:
        path: The folder.
        name: What the data sets are called.

    Raises:
        FileNotFoundError: If a part or all its images are missing.
        ValueError: If a class is only in test or empty in train, an image is in no class, a file is not an 8-bit
            image, or an image's size is not that of the first.
        ImportError: If Pillow or numpy is not installed.
    """
    train, test = _listed(path)
    classes = tuple(train)
    labels = [classes.index(c) for part in (train, test) for c, listed in part.items() for _ in listed]
    count = sum(map(len, train.values()))
    files = _in_order(train, test)
    pixels = decoded_once(path, files, lambda: _decoded([path / file for file in files]))
    whole = Dataset(pixels, torch.tensor(labels), classes, name)
    return whole.subset(slice(None, count)), whole.subset(slice(count, None))


def content_digest(path: Path) -> str:
    """Sixteen hexadecimal digits of the names and bytes of the files that `image_folder` reads."""
    return contents(path, _in_order(*_listed(path)))


def _in_order(*parts: Classes) -> list[str]:
    return [file for part in parts for listed in part.values() for file in listed]


def _listed(path: Path) -> tuple[Classes, Classes]:
    """The image files of each class in both parts."""
    train, test = _classes(path, "train"), _classes(path, "test")
    if alone := [c for c in test if c not in train]:
        raise ValueError(f"load: {path / 'test' / alone[0]} has no like in train; give train every class.")
    if empty := [c for c, listed in train.items() if not listed]:
        raise ValueError(f"load: {path / 'train' / empty[0]} has no images; add some or remove the folder.")
    return train, test


def _classes(path: Path, part: str) -> Classes:
    top, listed = path / part, {}
    for child in sorted(os.listdir(top)) if top.is_dir() else []:
        if (top / child).is_dir():
            if _is_data(child):
                listed[child] = _images_below(path, f"{part}/{child}")
        elif _is_image(child):
            raise ValueError(f"load: {top / child} is in no class; move it into the folder of one.")
    if not any(listed.values()):
        raise FileNotFoundError(f"load: no images in {top}; put them there as CLASS/FILE, for each class.")
    return listed


def _images_below(path: Path, start: str) -> list[str]:
    """The image files in a folder and in the folders below it."""
    found = []
    for folder, below, names in os.walk(path / start, followlinks=True):
        below[:] = filter(_is_data, below)
        under = Path(folder).relative_to(path).as_posix()
        found += [f"{under}/{name}" for name in names if _is_image(name)]
    return sorted(found)


def _is_data(name: str) -> bool:
    return not name.startswith(".") and name not in _NOT_DATA


def _is_image(name: str) -> bool:
    return _is_data(name) and os.path.splitext(name)[1].lower() in _ENDINGS


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
