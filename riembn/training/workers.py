"""Runs side by side: by processes of this machine, or by the workers of a cluster."""

from __future__ import annotations

import atexit
import functools
import gc
import inspect
import os
import time
import traceback
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from ..additions import take_over
from ..experiment.config import RunConfig
from ..experiment.store import Store
from .freed_memory import keep_freed_memory
from .train import RunLocked, train

_OF_A_SWEEP = {"config", "store", "resume", "device", "progress"}
OPTIONS = tuple(name for name in inspect.signature(train).parameters if name not in _OF_A_SWEEP)
"""Arguments of `riembn.train` that a sweep hands on to every run."""

_POLL_SECONDS = 1.0
_DIED = "its process died: it was killed, or took more memory than there is"


class Ended(NamedTuple):
    """What became of a run: trained, unless there is an error or another process has it."""

    config: RunConfig
    error: str = ""  # its traceback
    locked: bool = False
    its_own: bool = True  # not for want of data, packages or room on the disk, which can be there next time


@dataclass(frozen=True)
class Places:
    """Where the runs of this machine compute: so many at a time, on devices that they take in turn."""

    folder: Path
    count: int
    devices: tuple[str | None, ...]
    asked_by: int  # the process whose sweep it is

    @contextmanager
    def taken(self) -> Iterator[str | None]:
        """The device of a place that no other process has; the place is free again when the process ends."""
        from filelock import FileLock, Timeout

        while True:
            for number in range(self.count):
                try:
                    with FileLock(self.folder / f"{number}.lock").acquire(timeout=0):
                        yield self.devices[number % len(self.devices)]
                        return
                except Timeout:
                    continue
            time.sleep(0.01)


def devices(device: str | Sequence[str] | None, n_jobs: int) -> tuple[str | None, ...]:
    """The devices for the runs of a sweep: those given, or each GPU of several if runs go side by side."""
    if device is not None:
        return (device,) if isinstance(device, str) else tuple(device)
    if n_jobs != 1 and (count := torch.cuda.device_count()) > 1:
        return tuple(f"cuda:{number}" for number in range(count))
    return (None,)


def processes(on: Sequence[str | None], n_jobs: int) -> int:
    """How many runs go side by side: as many as asked for; one a device of several, or a core, if it is open."""
    from joblib import effective_n_jobs

    several = len(on) > 1 and n_jobs in (1, -1)
    one_gpu = n_jobs == -1 and on[0] is not None and torch.device(on[0]).type != "cpu"
    return len(on) if several or one_gpu else effective_n_jobs(n_jobs)


def on_machine(
    configs: Sequence[RunConfig],
    job: Mapping[str, Any],
    *,
    n_jobs: int,
    backend: str | None,
    device: str | Sequence[str] | None,
) -> Iterator[Ended]:
    """What becomes of each run, as they end.

    A process that dies takes its pool with it. What it and its neighbors were at is then run again, one after
    the other: a run that has its process to itself and still loses it has failed, and no other run has.
    """
    on = devices(device, n_jobs)
    n_jobs = processes(on, n_jobs)
    with TemporaryDirectory(prefix="riembn-") as folder:
        run = functools.partial(_run, places=Places(Path(folder), n_jobs, on, os.getpid()), **job)
        suspects = yield from _pooled(configs, run, n_jobs, backend, Path(folder))
        for config in suspects:
            if (yield from _pooled([config], run, max(2, n_jobs), backend, Path(folder))):
                yield Ended(config, _DIED)


def _pooled(
    configs: Sequence[RunConfig], run: Callable[..., Any], n_jobs: int, backend: str | None, folder: Path
) -> Generator[Ended, None, list[RunConfig]]:
    """The runs that end, as they do; returns those that were at work when a process died."""
    from joblib import Parallel, delayed

    left, suspects = list(configs), []
    backend = backend or "loky"
    start: dict[str, Any] = {"initializer": gc.disable} if backend == "loky" else {}  # until `_start`
    while left:
        try:
            parallel = Parallel(n_jobs=n_jobs, backend=backend, return_as="generator_unordered", **start)
        except ValueError:
            raise ValueError(
                f"sweep: backend={backend!r} is not accepted: joblib has no such, or none that gives results as they "
                'come; give None or "loky" for processes, "threading", or "dask" with an address.'
            ) from None
        try:
            for ended in parallel(delayed(run)(config) for config in left):
                left.remove(ended.config)
                yield ended
        except BrokenProcessPool:
            died = [config for config in left if (folder / config.name).exists()] or left
            for config in died:
                (folder / config.name).unlink(missing_ok=True)
            left = [config for config in left if config not in died]
            suspects += died
    return suspects


def on_cluster(
    configs: Sequence[RunConfig],
    job: Mapping[str, Any],
    *,
    address: str,
    device: str | None,
) -> Iterator[Ended]:
    """As `on_machine`, by the workers of a Dask scheduler, which gives the run of a lost worker to another.

    Raises:
        ValueError: If a worker has several threads: a process trains one run at a time.
    """
    try:
        from distributed import Client, as_completed
    except ImportError as error:
        raise ImportError("sweep: Dask is not installed; pip install 'riembn[cluster]'.") from error

    run = functools.partial(_run_on_cluster, asked_by=os.getpid(), device=device, **job)
    with Client(address) as client:
        for worker, threads in client.nthreads().items():
            if threads > 1:  # of one process: they would take turns, and keep the runs that wait from others
                raise ValueError(
                    f"sweep: the worker {worker} has {threads} threads, and a run needs a process to itself; start "
                    "workers with --nthreads 1."
                )
        # The scheduler's names: another sweep can want the same runs in another store.
        keys = [f"{config.name}-{uuid.uuid4().hex}" for config in configs]
        futures = client.map(run, configs, key=keys, pure=False)
        by_key = {future.key: config for future, config in zip(futures, configs, strict=True)}
        for future in as_completed(futures):
            if future.status == "finished":
                yield future.result()
            elif future.status == "error":  # of the run itself, `_run` returns what went wrong
                lost = future.exception()
                yield _failed(by_key[future.key], lost, f"{type(lost).__name__}: {lost}")
            else:
                said = f"the cluster gave it up ({future.status}); the same sweep tries it again"
                yield Ended(by_key[future.key], said, its_own=False)


@functools.cache
def _start() -> None:
    """Begin in a process of the sweep's own: nobody looks for garbage in what it imports, while or after it does."""
    import_module("torch._dynamo")  # as every optimizer of torch does

    gc.freeze()
    atexit.register(gc.unfreeze)  # else nanobind reports what it has made as leaked
    gc.enable()
    keep_freed_memory()


def _run_on_cluster(config: RunConfig, *, asked_by: int, **job: Any) -> Ended:
    if os.getpid() != asked_by:  # a worker can be a thread of the caller's process
        keep_freed_memory()
    return _run(config, **job)


def _failed(config: RunConfig, error: Exception, said: str) -> Ended:
    return Ended(config, said, its_own=not isinstance(error, OSError | ImportError))


def _run(
    config: RunConfig,
    *,
    store: Path,
    wait: bool,
    options: Mapping[str, Any],
    added: bytes | None = None,
    device: str | None = None,
    places: Places | None = None,
) -> Ended:
    """Train one run into the store; ``added`` is what `riembn.additions.carried` gave."""
    take_over(added)
    if places is not None:
        if os.getpid() != places.asked_by:
            _start()
        at_work = places.folder / config.name  # is left behind where the process dies
        at_work.touch()
        with places.taken() as device:
            ended = _run(config, store=store, wait=wait, options=options, device=device)
        at_work.unlink(missing_ok=True)  # nothing is there once the sweep was interrupted
        return ended
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        while True:
            try:
                train(config, store=Store(store), device=device, progress=False, **options)
                return Ended(config)
            except RunLocked:
                if not wait:
                    return Ended(config, locked=True)
                time.sleep(_POLL_SECONDS)
    except Exception as error:  # whatever it is, the other runs go on; it is reported at the end
        return _failed(config, error, traceback.format_exc())
    finally:
        torch.set_num_threads(threads)
