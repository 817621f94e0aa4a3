"""From a configuration to its record: read, gone on with, or trained, by one process at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from filelock import Timeout

from ..experiment.config import RunConfig
from ..experiment.files import NotWritten
from ..experiment.record import Record
from ..experiment.store import Store
from .devices import check_device, joined
from .loop import Run

# Torch's random numbers belong to the process: runs in two of its threads would draw from each other's.
_ONE_RUN = threading.Lock()


class RunLocked(RuntimeError):
    """Another process is training this run in this store."""


def train(
    config: RunConfig,
    *,
    store: Store | str | Path | None = None,
    resume: bool = True,
    device: torch.device | str | None = None,
    compile: bool = False,
    shard: bool = False,
    checkpoint_minutes: float | None = None,
    tensorboard: str | Path | None = None,
    progress: bool | None = None,
    data_root: str | Path | None = None,
) -> Record:
    """Train one run, or read its record if it is there.

    Args:
        config: What to run.
        store: Where the record and checkpoints are kept; None keeps nothing.
        resume: Use a record or checkpoints that are there; False trains anew and replaces them.
        device: Where to compute; None takes the GPU if there is one.
        compile: Train with ``torch.compile(model)``, which changes results by rounding only.
        shard: Cut weights and optimizer over the devices (FSDP2), instead of a copy on each (DDP); for processes
            that `torchrun` starts. Results differ by rounding only, as they do with the number of devices.
        checkpoint_minutes: A checkpoint so many minutes after the one before, be it within an epoch; None makes
            one after each epoch. There is one at the end either way. From one within an epoch a run goes on on
            the same kind of device only, which draws the same random numbers.
        tensorboard: Folder to which the record's columns are written as curves while the run lasts.
        progress: Show a progress bar; None shows it on a terminal only.
        data_root: Folder of the data sets, as in `riembn.data.load`.

    Returns:
        The run's record; also of a run whose loss was not finite, which stops there, as ``diverged``.

    Raises:
        RunLocked: If another process is training this run in this store.
        ValueError, FileNotFoundError: If data set and configuration do not fit, or the data is not there.
        OSError: If the store cannot be written; what is there stays as it is.
    """
    if checkpoint_minutes is not None and not checkpoint_minutes >= 0:
        raise ValueError(f"train: checkpoint_minutes={checkpoint_minutes!r} is not accepted; give 0 or more.")
    check_device(device)
    store = Store(store) if isinstance(store, str | Path) else store

    with joined(device, shard=shard) as devices:

        def trained() -> Record:
            with _ONE_RUN:
                run = Run(config, devices.device, data_root, compile=compile, devices=devices)
                return run.to_record(
                    store.checkpoints(config) if store else None,
                    resume=resume,
                    minutes=checkpoint_minutes,
                    progress=progress,
                    tensorboard=tensorboard,
                )

        def present() -> Record | None:
            return devices.from_first(lambda: store.get(config) if store and resume else None)

        if store is None:
            return trained()
        if (record := present()) is not None:
            return record
        with ExitStack() as held:
            devices.from_first(lambda: held.enter_context(_lock(store, config)))
            # It may have been finished between the look above and the lock.
            if (record := present()) is not None:
                return record
            record = trained()

            def kept() -> Record:
                store.put(record)
                store.checkpoints(config).keep_last()
                return record

            return devices.from_first(kept)


@contextmanager
def _lock(store: Store, config: RunConfig) -> Iterator[None]:
    try:
        held = store.lock(config).acquire(timeout=0)
    except Timeout:
        raise RunLocked(
            f"train: another process trains {config.name} in {store.path}; wait, or choose another store."
        ) from None
    except OSError as error:
        raise NotWritten(
            error.errno, f"cannot write to {store.path}: {error.strerror}; choose another store"
        ) from error
    with held:
        yield
