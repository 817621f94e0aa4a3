"""What a folder of image files holds, as a digest, and its decoded pixels; both are kept for the next time."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

FEW = 1000  # files that are read again faster than anything kept would be worth
LARGE = 2**30  # bytes of pixels that are not kept

Files = list[str]  # below the folder, with / between names


Stamps = list[tuple[str, int, int]]  # name, size and time of change of each file

_last: dict[Path, tuple[Stamps, str]] = {}  # of each folder in this process, since many configurations name one


def contents(root: Path, files: Files) -> str:
    """Sixteen hexadecimal digits of the files' names, sizes and bytes; only files that changed are read again."""
    stats = ((file, os.stat(f"{root}/{file}")) for file in files)
    stamps = [(file, stat.st_size, stat.st_mtime_ns) for file, stat in stats]
    before, digest = _last.get(root, ([], ""))
    if stamps != before:
        digest = _digest(root, stamps)
        _last[root] = stamps, digest
    return digest


def _digest(root: Path, stamps: Stamps) -> str:
    place = _place(root, "json")
    try:
        known: dict[str, list[Any]] = json.loads(place.read_text())
    except (OSError, ValueError):
        known = {}
    now: dict[str, list[Any]] = {}
    for file, size, changed in stamps:
        old = known.get(file, [])
        same = old[:2] == [size, changed]
        now[file] = old if same else [size, changed, hashlib.sha256((root / file).read_bytes()).hexdigest()]
    if len(stamps) >= FEW and now != known:
        _keep(place, lambda file: file.write(json.dumps(now).encode()))
    held = sorted((file, size, content) for file, (size, _, content) in now.items())
    return hashlib.sha256(json.dumps(held).encode()).hexdigest()[:16]


def decoded_once(root: Path, files: Files, decode: Callable[[], Tensor]) -> Tensor:
    """What ``decode`` makes of the files, read back if it was made of the same ones before."""
    if len(files) < FEW:
        return decode()
    import PIL

    # Another Pillow can round the pixels of a JPEG otherwise.
    version = hashlib.sha256(json.dumps([contents(root, files), files, PIL.__version__]).encode()).hexdigest()
    place = _place(root, "pt")
    with suppress(Exception):  # absent, or damaged, of which torch says many things
        kept = torch.load(place, weights_only=True)
        if kept["version"] == version:
            return kept["pixels"]
    pixels = decode()
    if pixels.numel() <= LARGE:
        _keep(place, lambda file: torch.save({"version": version, "pixels": pixels}, file))
    return pixels


def _place(root: Path, ending: str) -> Path:
    """Where something of a folder is kept: one file of a kind, whatever becomes of the folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "riembn" / "imagefolder" / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]}.{ending}"


def _keep(place: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file whole or not at all; where there is no room for it, do without."""
    with suppress(OSError, RuntimeError):  # torch.save's word for a full disk is RuntimeError
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place.parent, delete=False) as file:
            try:
                write(file)
                file.close()
                os.replace(file.name, place)
            except BaseException:
                os.unlink(file.name)
                raise
