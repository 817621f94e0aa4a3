"""Checkpoints of a run, from which it goes on where it was killed."""

from __future__ import annotations

import hashlib
import io
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch

from .files import write_whole

_MAGIC = b"riembn checkpoint 1 "


class Checkpoints:
    """The checkpoints of one run, after an epoch or within one, of which the newest two are kept.

    A file starts with a line that holds the SHA-256 of the rest, so that a damaged one is known; it is set
    aside under another name, and the one before is used.

    Args:
        folder: Where they lie.
        digest: The run's digest, kept in each file.
    """

    def __init__(self, folder: Path, *, digest: str) -> None:
        self.folder = folder
        self._digest = digest

    def save(self, epoch: int, state: dict[str, Any], *, steps: int = 0) -> None:
        """Keep a state, and forget all but the one before it.

        Args:
            epoch: How many epochs are over.
            state: What to keep: tensors, numbers, text, and lists and dictionaries of them.
            steps: How many steps of the next epoch have been taken.
        """
        buffer = io.BytesIO()
        torch.save({"digest": self._digest, "epoch": epoch, **state}, buffer)
        payload = buffer.getvalue()
        checksum = hashlib.sha256(payload).hexdigest().encode()
        name = f"epoch-{epoch:05d}-step-{steps:07d}.pt"
        write_whole(self.folder / name, _MAGIC + checksum + b"\n" + payload)
        # The run's lock is held: what lies about is what a killed process was writing.
        for old in [*self._files()[:-2], *self.folder.glob(".*.tmp")]:
            old.unlink(missing_ok=True)

    def newest(self) -> dict[str, Any] | None:
        """The newest whole state, with its ``epoch`` and tensors on the CPU; None if there is none.

        A damaged file is renamed to ``….damaged`` with a warning.

        Raises:
            OSError: If a file cannot be read; it stays as it is.
        """
        for path in reversed(self._files()):
            try:
                state = _read(path)
                if state["digest"] != self._digest:
                    raise _Damaged(f"it belongs to the run {state['digest']}")
                return state
            # Nothing else: memory or a disk that fails for once is no fault of the file.
            except (_Damaged, pickle.UnpicklingError) as error:
                aside = path.with_suffix(".damaged")
                path.replace(aside)
                warnings.warn(
                    f"checkpoint {path} is damaged ({error}); set aside as {aside.name}", stacklevel=2
                )
        return None

    def keep_last(self) -> None:
        """Forget all but the newest."""
        for old in self._files()[:-1]:
            old.unlink(missing_ok=True)

    def clear(self) -> None:
        """Forget all of them."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _files(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("epoch-*.pt") if path.is_file())


class _Damaged(Exception):
    """Why a file is no checkpoint of this run."""


def _read(path: Path) -> dict[str, Any]:
    head, _, payload = path.read_bytes().partition(b"\n")
    if head != _MAGIC + hashlib.sha256(payload).hexdigest().encode():
        raise _Damaged("its checksum does not fit its content")
    # weights_only: a checkpoint from elsewhere can hold numbers, but not run code.
    return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
