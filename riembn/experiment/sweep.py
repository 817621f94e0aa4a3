"""Which runs of a grid are missing, and how do they get done, side by side?"""

from __future__ import annotations

import itertools
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .config import RunConfig
from .record import Record
from .store import Store, tidy
from .train import RunLocked, train

if TYPE_CHECKING:
    import pandas

__all__ = ["SweepFailed", "grid", "sweep"]

_POLL_SECONDS = 1.0


class SweepFailed(RuntimeError):
    """Some runs of a sweep failed: ``errors`` maps a run's name to its traceback."""

    def __init__(self, errors: Mapping[str, str], total: int) -> None:
        self.errors = dict(errors)
        lines = [f"  {name}: {text.strip().splitlines()[-1]}" for name, text in errors.items()]
        super().__init__(
            "\n".join([f"sweep: {len(errors)} of {total} runs failed, the others are in the store:", *lines])
        )


def grid(config: RunConfig, **values: Iterable[Any]) -> list[RunConfig]:
    """Every combination of the given values of some fields, the last one varying fastest.

    >>> from riembn import preset
    >>> start = preset("vgg-11/digits/sgd-g")
    >>> [(c.grad_clip, c.seed) for c in grid(start, grad_clip=[0.1, None], seed=range(2))]
    [(0.1, 0), (0.1, 1), (None, 0), (None, 1)]
    """
    combinations = itertools.product(*values.values())
    return [config.replace(**dict(zip(values, combination, strict=True))) for combination in combinations]


def sweep(
    configs: Iterable[RunConfig],
    *,
    store: Store | str | Path,
    n_jobs: int = 1,
    backend: str | None = None,
    device: str | None = None,
    progress: bool | None = None,
    data_root: str | Path | None = None,
) -> pandas.DataFrame:
    """The records of a grid of runs: present ones are read, missing ones are trained.

    Every run uses one thread, so that its numbers do not depend on how many run side by side. A run that
    another process is training in the same store is left to it, and waited for at the end.

    Args:
        configs: What is wanted; equal ones are run once.
        store: Where records are read and kept.
        n_jobs: Processes side by side; -1 for one a core.
        backend: A backend of joblib; None for its processes ("loky").
        device: As in `riembn.train`.
        progress: Show a line of progress; None on a terminal only. Elsewhere it is one line a run.
        data_root: As in `riembn.train`.

    Returns:
        Tidy data, in the order of ``configs``: one row a run and epoch, with the configuration's fields,
        digest and status, then the columns of the record.

    Raises:
        SweepFailed: After all others have ended, if runs failed: which, and why.
    """
    store = store if isinstance(store, Store) else Store(store)
    wanted = {config.digest(): config for config in configs}
    missing = [config for config in wanted.values() if store.get(config) is None]
    errors: dict[str, str] = {}
    with _Line(len(missing), progress) as line:
        for wait in (False, True):
            job = {"store": store.path, "device": device, "data_root": data_root, "wait": wait}
            locked = []
            for config, outcome in _side_by_side(missing, job, n_jobs, backend):
                if outcome == "locked":
                    locked.append(config)
                    continue
                if outcome:
                    errors[config.name] = outcome
                line.run_ended(config, outcome)
            missing = locked
    if errors:
        raise SweepFailed(errors, len(wanted))
    return tidy(_read(store, wanted.values()))


def _side_by_side(
    configs: Sequence[RunConfig], job: dict[str, Any], n_jobs: int, backend: str | None
) -> Iterator[tuple[RunConfig, str]]:
    from joblib import Parallel, delayed

    if not configs:
        return
    parallel = Parallel(n_jobs=n_jobs, backend=backend, return_as="generator_unordered")
    yield from parallel(delayed(_run)(config, **job) for config in configs)


def _run(
    config: RunConfig, *, store: Path, device: str | None, data_root: str | Path | None, wait: bool
) -> tuple[RunConfig, str]:
    """Train one run into the store; its traceback if it failed, "locked" if another process has it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        while True:
            try:
                train(config, store=store, device=device, progress=False, data_root=data_root)
                return config, ""
            except RunLocked:
                if not wait:
                    return config, "locked"
                time.sleep(_POLL_SECONDS)
    except Exception:  # whatever it is, the other runs go on; it is reported at the end
        return config, traceback.format_exc()
    finally:
        torch.set_num_threads(threads)


def _read(store: Store, configs: Iterable[RunConfig]) -> Iterator[Record]:
    for config in configs:
        record = store.get(config)
        if record is None:
            raise FileNotFoundError(
                f"sweep: the record of {config.name} vanished from {store.path}; run again."
            )
        yield record


class _Line:
    """One line of progress on a terminal; elsewhere, if asked for, one line a run."""

    def __init__(self, total: int, progress: bool | None) -> None:
        from tqdm import tqdm

        terminal = sys.stderr.isatty()
        self._lines = bool(progress) and not terminal
        self._bar = tqdm(total=total, desc="sweep", unit="run", disable=not terminal or progress is False)
        self._started, self._done = time.monotonic(), 0

    def __enter__(self) -> _Line:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def run_ended(self, config: RunConfig, error: str) -> None:
        self._done += 1
        self._bar.update()
        if self._lines:
            minutes = (time.monotonic() - self._started) / 60
            word = "failed" if error else "done"
            print(
                f"{self._done}/{self._bar.total} {minutes:.1f} min {word}: {config.name}",
                file=sys.stderr,
                flush=True,
            )
