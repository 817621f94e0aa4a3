"""The missing runs of a grid, trained side by side."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..additions import carried
from ..experiment.config import RunConfig
from ..experiment.record import Record
from ..experiment.store import Store, last_line, tidy
from .devices import check_device
from .workers import OPTIONS, Ended, on_cluster, on_machine

if TYPE_CHECKING:
    import pandas


class SweepFailed(RuntimeError):
    """Some runs of a sweep failed: ``errors`` maps a run's name to its traceback."""

    def __init__(self, errors: Mapping[str, str], total: int, before: int = 0) -> None:
        self.errors = dict(errors)
        alike: dict[str, list[str]] = {}
        for name, text in errors.items():
            alike.setdefault(last_line(text), []).append(name)
        lines = [
            f"  {name}{f' and {len(others)} more' if others else ''}: {text}" for text, (name, *others) in alike.items()
        ]
        if before:
            lines.append(
                f"{before} of them failed in an earlier sweep and were not tried again; "
                "retry_failed=True, or --retry-failed, does."
            )
        others = ", the others are in the store" if len(errors) < total else ""
        what = f"sweep: {len(errors)} of {total} runs failed{others}:"
        super().__init__("\n".join([what, *lines]))


def sweep(
    configs: Iterable[RunConfig],
    *,
    store: Store | str | Path,
    n_jobs: int = 1,
    backend: str | None = None,
    address: str | None = None,
    device: str | Sequence[str] | None = None,
    retry_failed: bool = False,
    progress: bool | None = None,
    **options: Any,
) -> pandas.DataFrame:
    """The records of a grid of runs: present ones are read, missing ones are trained.

    Every run uses one thread, so that its numbers do not depend on how many run side by side. A run that
    another process is training in the same store is left to it, and waited for at the end.

    Args:
        configs: What is wanted; equal ones are run once.
        store: Where records are read and kept. The workers of a cluster must see it under the same path.
        n_jobs: Processes side by side; -1 for one a core, or one a GPU where there are several or one is given.
            Of several given devices, 1 and -1 mean one process each.
        backend: A backend of joblib that gives results as they come; None for its processes ("loky"). "dask" for the
            workers of a cluster.
        address: Of the Dask scheduler, with ``backend="dask"``: ``tcp://HOST:PORT``. Its workers are to have
            one thread each (``dask worker --nthreads 1``).
        device: Where to compute, as in `riembn.train`, or several places that the runs take in turn. None:
            with ``n_jobs`` other than 1, each GPU in turn.
        retry_failed: Run again what failed in an earlier sweep. Else it is reported again, and not tried.
        progress: Show a line of progress; None on a terminal only. Elsewhere it is one line a run.
        options: What else every run is given; `riembn.train` says of ``compile``,
            ``checkpoint_minutes``, ``tensorboard`` and ``data_root`` what they are.

    Returns:
        Tidy data, in the order of ``configs``: one row a run and epoch, with the configuration's fields,
        digest and status, then the columns of the record.

    Raises:
        SweepFailed: After all others have ended, if runs failed: which, and why. The store remembers those
            that did not fail for want of data, packages or room on the disk.
        ValueError, TypeError: If the arguments do not go together.
    """
    if unknown := sorted(set(options) - set(OPTIONS)):
        raise TypeError(f"sweep: no argument {', '.join(unknown)}; runs accept {', '.join(OPTIONS)}.")
    if isinstance(n_jobs, bool) or not isinstance(n_jobs, int) or n_jobs == 0:
        raise ValueError(f"sweep: n_jobs={n_jobs!r} is not accepted; give 1 or more, or -1 for one a core.")
    for place in (device,) if isinstance(device, str) else device or ():
        check_device(place)
    if (backend == "dask") != (address is not None):
        raise ValueError(
            f"sweep: backend={backend!r} with address={address!r} is not accepted; give "
            'backend="dask" and its scheduler\'s address="tcp://HOST:PORT", or neither.'
        )
    one = device if isinstance(device, str) else None
    if address is not None and device is not one:
        raise ValueError(
            f"sweep: device={device!r} is not accepted with a cluster; give one for all its workers."
        )
    for name in ("data_root", "tensorboard"):  # workers elsewhere have another working folder
        if options.get(name) is not None:
            options[name] = Path(options[name]).absolute()
    store = store if isinstance(store, Store) else Store(store)
    wanted = {config.digest(): config for config in configs}
    missing = [config for config in wanted.values() if store.get(config) is None]
    errors: dict[str, str] = {}
    if not retry_failed:
        errors = {c.name: text for c in missing if (text := store.failure(c)) is not None}
        missing = [config for config in missing if config.name not in errors]
    before = len(errors)

    def side_by_side(job: dict[str, Any]) -> Iterator[Ended]:
        if address is not None:
            return on_cluster(missing, job, address=address, device=one)
        return on_machine(missing, job, n_jobs=n_jobs, backend=backend, device=device)

    with _told(len(missing), progress) as tell:
        for wait in (False, True):
            locked = []
            job = {"store": store.path.absolute(), "wait": wait, "options": options, "added": carried()}
            for ended in side_by_side(job) if missing else ():
                if ended.locked:
                    locked.append(ended.config)
                    continue
                if ended.error:
                    errors[ended.config.name] = ended.error
                    if ended.its_own:
                        store.note_failure(ended.config, ended.error)
                tell(ended.config, ended.error)
            missing = locked
    if errors:
        raise SweepFailed(errors, len(wanted), before)
    return tidy(_read(store, wanted.values()))


def _read(store: Store, configs: Iterable[RunConfig]) -> Iterator[Record]:
    for config in configs:
        record = store.get(config)
        if record is None:
            raise FileNotFoundError(
                f"sweep: the record of {config.name} vanished from {store.path}; run again."
            )
        yield record


@contextmanager
def _told(total: int, progress: bool | None) -> Iterator[Callable[[RunConfig, str], None]]:
    """Tells of runs that have ended: by one line of progress on a terminal; elsewhere, if asked, by a line a run."""
    from tqdm import tqdm

    terminal, started, count = sys.stderr.isatty(), time.monotonic(), itertools.count(1)
    with tqdm(total=total, desc="sweep", unit="run", disable=not terminal or progress is False) as bar:

        def ended(config: RunConfig, error: str) -> None:
            bar.update()
            if progress and not terminal:
                minutes, word = (time.monotonic() - started) / 60, "failed" if error else "done"
                line = f"{next(count)}/{total} {minutes:.1f} min {word}: {config.name}"
                print(line, file=sys.stderr, flush=True)

        yield ended
