"""A run's columns as scalars of TensorBoard, to be watched while it lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def curves(folder: str | Path | None, name: str, done: int) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that takes an epoch's row of the record and adds it to the run's curves.

    Args:
        folder: TensorBoard's log directory; None draws nothing.
        name: The run's, a folder below it.
        done: Epochs that are over: what an interrupted run wrote of later ones is dropped.

    Raises:
        ImportError: If TensorBoard is not installed.
    """
    if folder is None:
        yield lambda row: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "train: TensorBoard is not installed; pip install 'riembn[tensorboard]', or do without it."
        ) from error

    def add(row: Mapping[str, Any]) -> None:
        for column, value in row.items():
            if column not in ("epoch", "step") and value is not None:
                writer.add_scalar(column, value, row["epoch"])
        writer.flush()

    writer = SummaryWriter(str(Path(folder) / name), purge_step=done + 1)
    try:
        yield add
    finally:
        writer.close()
