"""The command line, ``python -m riembn COMMAND``: runs are started and looked at."""

from __future__ import annotations

import argparse
import functools
import json
import re
import signal
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .additions import load_plugin
from .experiment import Record, RunConfig, Store, grid, preset
from .experiment.config import FIELDS, KINDS, acts
from .experiment.fields import listed, written
from .experiment.files import write_whole
from .experiment.store import last_line, tidy
from .training import SweepFailed, sweep, train
from .training.devices import is_first
from .training.freed_memory import keep_freed_memory

if TYPE_CHECKING:
    import pandas

BAD_INPUT, FAILED = 2, 1
_ALWAYS_SHOWN = ("network", "dataset", "method", "seed")
_GIVEN = [name for name in FIELDS if name != "code"]  # which follows from the others


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says.

    Args:
        arguments: The words after ``python -m riembn``; None takes them from the process.

    Returns:
        Exit code: 0 if all is done (a run of a sweep that diverged is a result), 1 if a run failed, that of
        `train` diverged, or something could not be written, 2 if the input was not accepted, 130 if interrupted.
    """
    options = _parser().parse_args(arguments)
    if options.act in (_train, _sweep, _design):
        keep_freed_memory()  # of this process, which does nothing else
    try:
        for file in getattr(options, "plugin", ()):
            load_plugin(file)
        return options.act(options)
    except SweepFailed as error:
        print(error, file=sys.stderr)
        return FAILED
    except (ValueError, TypeError, ImportError, FileNotFoundError, NotADirectoryError) as error:
        _complain(options, error)
        return BAD_INPUT
    except (OSError, RuntimeError) as error:
        _complain(options, error)
        return FAILED
    except KeyboardInterrupt:
        trains = options.act in (_train, _sweep) and options.store and not getattr(options, "fresh", False)
        how = "; the same command goes on from the last checkpoint" if trains else ""
        print(f"{options.prog}: interrupted{how}", file=sys.stderr)
        return 130


def _complain(options: argparse.Namespace, error: Exception) -> None:
    said = " ".join(str(error).split()).removeprefix(f"{options.prog.split()[-1]}: ")  # which prog ends with
    print(f"{options.prog}: {said}", file=sys.stderr)


def _train(options: argparse.Namespace) -> int:
    if len(options.preset) > 1:
        raise ValueError(f"train: --preset is given {len(options.preset)} times; give one, or use sweep.")
    config = preset(options.preset[0], options.profile, **_overrides(options))
    if options.dry_run:
        if is_first():
            _print_plan([config], options.store)
        return 0
    record = train(
        config,
        store=options.store,
        resume=not options.fresh,
        device=options.device,
        shard=options.shard,
        **_execution(options),
    )
    if is_first():
        print(_summary(record))
    return 0 if record.status == "finished" else FAILED


def _sweep(options: argparse.Namespace) -> int:
    if options.store is None and not options.dry_run:
        raise ValueError("sweep: --store is missing; give the folder where records are kept.")
    varied: dict[str, list[Any]] = {}
    for name, values in [*options.grid, *([("seed", options.seeds)] if options.seeds else [])]:
        if name in varied or hasattr(options, name):
            raise ValueError(f"sweep: {name} is given twice; name all its values in one --grid or --seeds.")
        varied[name] = values
    bases = [preset(name, options.profile, **_overrides(options)) for name in options.preset]
    configs = []
    for base in bases:  # what one method does not have may be another's; what none has, grid refuses
        idle = {name for name in varied if not acts(base, name)}
        if len(bases) > 1 and any(acts(other, name) for name in idle for other in bases):
            configs += grid(base, **{name: values for name, values in varied.items() if name not in idle})
        else:
            configs += grid(base, **varied)
    if options.dry_run:
        _print_plan(configs, options.store)
        return 0
    frame = sweep(
        configs,
        store=options.store,
        n_jobs=options.jobs,
        backend=options.backend or ("dask" if options.address else None),
        address=options.address,
        device=options.device.split(",") if "," in (options.device or "") else options.device,
        retry_failed=options.retry_failed,
        progress=True,
        **_execution(options),
    )
    diverged = frame.loc[frame["status"] == "diverged", "digest"].nunique()
    print(f"{frame['digest'].nunique()} runs in {options.store}, {diverged} of them diverged")
    return 0


def _show(options: argparse.Namespace) -> int:
    store, damaged = _existing(options.store), _Damaged()
    records, failures = list(store.records(damaged)), store.failures()
    if not records and not failures and not damaged.code:
        print(f"no records in {options.store}")
    for record in records:
        print("  ".join([_summary(record), *_own(record, records)]))
    for name, text in failures.items():
        print(f"{name}  failed: {last_line(text)}")
    return damaged.code


def _own(record: Record, records: Sequence[Record]) -> Iterator[str]:
    """Seed and method stand in every line; of the rest, what tells apart the runs of one method."""
    alike = [r.config.as_dict() for r in records if r.config.method == record.config.method]
    own = record.config.as_dict()
    for name in FIELDS:
        if name not in _ALWAYS_SHOWN and any(other[name] != own[name] for other in alike):
            yield f"{name}={written(own[name])}"


def _report(options: argparse.Namespace) -> int:
    store, damaged = _existing(options.store), _Damaged()
    records = list(store.records(damaged))
    if not records:
        print(f"no records in {options.store}")
    lines = _claims(tidy(iter(records))) if options.claims else _over_seeds(records)
    for line in lines:
        print(line)
    return damaged.code


def _claims(frame: pandas.DataFrame) -> Iterator[str]:
    """What the records say of each claim, and by which comparisons."""
    from .evidence import claims

    verdicts = claims.judge(frame)
    number = sum(len(verdict.deciding) for verdict in verdicts)
    if number:
        yield f"{number} comparisons decide, {claims.HOW}"
    for verdict in verdicts:
        yield f"{verdict.key:3} {verdict.headline}: {verdict.claim} [{verdict.source}]"
        yield from (f"      {line}" for line in (*verdict.findings, *verdict.notes))


def _over_seeds(records: Sequence[Record]) -> Iterator[str]:
    """The errors of each configuration at its end: mean with its interval, and median."""
    from .evidence import stats

    seeds: dict[str, list[Record]] = {}
    for record in records:
        alike = {**record.config.as_dict(), "seed": None}  # as recorded: its code or folder need not be here
        seeds.setdefault(json.dumps([alike, record.recipe], sort_keys=True), []).append(record)
    for runs in seeds.values():
        config = runs[0].config
        which = "validation_error" if config.holdout else "test_error"
        errors = [run.columns[which][-1] for run in runs if run.status == "finished"]
        said = [f"{config.network}/{config.dataset}/{config.method:8} n = {len(errors)}"]
        if config.holdout:
            said.append("validation")
        if len(errors) > 1:
            found = stats.interval(errors)
            said.append(f"mean {found.estimate:.2f} % ({found.low:.2f} to {found.high:.2f})")
        if errors:
            said.append(f"median {statistics.median(errors):.2f} %")
        if len(errors) < len(runs):
            said.append(f"{len(runs) - len(errors)} diverged")
        yield "  ".join([*said, *_own(runs[0], records)])


def _verify(options: argparse.Namespace) -> int:
    wrong = _existing(options.store).verify()
    print("\n".join(wrong) if wrong else f"every record in {options.store} is whole")
    return FAILED if wrong else 0


def _merge(options: argparse.Namespace) -> int:
    store = Store(options.store)
    for source in options.source:
        print(f"{store.merge(source)} records taken over from {source}")
    return 0


def _prune(options: argparse.Namespace) -> int:
    damaged = _Damaged()
    print(f"{_existing(options.store).prune(damaged) / 1e6:.1f} MB of checkpoints removed")
    return damaged.code


def _export(options: argparse.Namespace) -> int:
    damaged = _Damaged()
    frame = _existing(options.store).frame(damaged)
    if not frame.empty:
        write_whole(Path(options.csv), frame.to_csv(index=False).encode())
        print(f"{len(frame)} rows in {options.csv}")
    elif not damaged.code:
        raise ValueError(f"no records in {options.store}, so nothing is written; train or sweep into it first.")
    return damaged.code


class _Damaged:
    """Says of damaged records which they are, and goes on with the others."""

    code = 0

    def __call__(self, message: str) -> None:
        self.code = FAILED
        print(message, file=sys.stderr)


def _design(options: argparse.Namespace) -> int:
    from .evidence.designs import DESIGNS

    if options.name not in DESIGNS:
        raise ValueError(f"design: no block {options.name!r}; there are {', '.join(DESIGNS)}.")
    for number, study in enumerate(DESIGNS[options.name](), start=1):
        missing = study.missing(options.store)
        total = len(study.tuning()) + len(study.cells) * len(study.seeds)
        print(f"block {options.name}, study {number}: {total} runs, {len(missing)} to be run next", flush=True)
        if not options.dry_run:
            study.run(
                options.store,
                n_jobs=options.jobs,
                device=options.device,
                data_root=options.data,
                retry_failed=options.retry_failed,
                progress=True,
            )
    return 0


def _new_chapter(options: argparse.Namespace) -> int:
    from .pages.chapter import repository
    from .pages.new_chapter import copied_chapter, new_chapter

    root = repository("new-chapter")
    if bool(options.source) == bool(options.vary):
        raise ValueError("new-chapter: give --vary FIELD=A,B or --from CHAPTER, one of the two.")
    if len(options.vary) > 1 or len(options.plugin) > 1:
        raise ValueError(
            "new-chapter: give one --vary, and beside it at most one --plugin; a second field goes into vary=… of the "
            "chapter's study."
        )
    if options.source and (options.preset or options.plugin):
        raise ValueError("new-chapter: --from copies a chapter as it is; give --preset and --plugin beside --vary.")
    if options.source:
        path = copied_chapter(options.name, options.source, root=root)
    else:
        plugin = Path(options.plugin[0]).resolve() if options.plugin else None
        start = options.preset or "vgg-13/cifar10/sgd-g"
        path = new_chapter(options.name, *options.vary[0], root=root, start=start, plugin=plugin)
    print(f"{path.relative_to(root)} is written, and listed in _toc.yml; ci/book {path.stem} builds it")
    return 0


def _existing(place: str) -> Store:
    store = Store(place)
    if not store.path.is_dir():
        raise ValueError(f"there is no store {store.path}; give the folder of a `train` or `sweep`.")
    return store


def _summary(record: Record) -> str:
    config, columns = record.config, record.columns
    name = f"{config.network}/{config.dataset}/{config.method}"
    if not columns["epoch"]:
        outcome = "no whole epoch"
    else:
        outcome = f"epoch {columns['epoch'][-1]:>3}"
        for part in ("train", "validation", "test"):
            if (error := columns[f"{part}_error"][-1]) is not None:
                outcome += f"  {part} {error:6.2f} %"
    if record.status == "diverged":
        outcome += f"  diverged at step {record.diverged_step}"
    return f"{record.digest}  {name:34} seed {config.seed:<3} {outcome}"


def _print_plan(configs: Sequence[RunConfig], place: str | None) -> None:
    """What would be run: the fields, or of several runs those that differ."""
    store = Store(place) if place else None
    distinct = {config.digest(): config for config in configs}
    fields = [config.as_dict() for config in distinct.values()]
    common = {name: fields[0][name] for name in FIELDS if all(f[name] == fields[0][name] for f in fields)}
    for name, value in common.items():
        print(f"{name:14} {written(value)}")
    for digest, config in distinct.items():
        own = " ".join(f"{n}={written(v)}" for n, v in config.as_dict().items() if n not in common)
        done = " (its record is there)" if store and store.get(config) else ""
        print(f"{'digest':14} {digest} {own}".rstrip() + done)


def _execution(options: argparse.Namespace) -> dict[str, Any]:
    """How a run is computed, in the words of `riembn.train`."""
    return {
        "compile": options.compile,
        "checkpoint_minutes": options.checkpoint_minutes,
        "tensorboard": options.tensorboard,
        "data_root": options.data,
    }


def _overrides(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in _GIVEN if hasattr(options, name)}


def _varied(words: str) -> tuple[str, list[Any]]:
    """``grad_clip=0.1,none`` as a field and its values."""
    field, equals, values = words.partition("=")
    name = field.replace("-", "_")
    if name not in _GIVEN or not equals:
        accepted = f"give FIELD=VALUE,VALUE,… with a field of {', '.join(_GIVEN)}"
        raise argparse.ArgumentTypeError(f"{words!r} is not accepted; {accepted}")
    return name, [_value(name, text) for text in listed(values)]


def _value(field: str, text: str) -> Any:
    try:
        return KINDS[field].parse(field, text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _seeds(text: str) -> list[int]:
    """``0,1,2`` or ``0-2``."""
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if not found or (found[2] and int(found[2]) < int(found[1])):
            raise argparse.ArgumentTypeError(f"{text!r} is not accepted; give seeds such as 0,1,2 or 0-2")
        seeds += range(int(found[1]), int(found[2] or found[1]) + 1)
    return seeds


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m riembn", description="Train, sweep, and look at what is there.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    def command(name: str, act: Any, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(act=act, prog=added.prog)
        return added

    one = command("train", _train, "Train one run, or read its record; an interrupted one goes on.")
    many = command("sweep", _sweep, "Train what is missing of a grid of runs.")
    for sub in (one, many):
        sub.add_argument(
            "--preset", required=True, action="append", metavar="NETWORK/DATASET/METHOD",
            help="a cell of the papers' tables; sweep takes it several times",
        )  # fmt: skip
        sub.add_argument("--profile", default="smoke", help="smoke (default), laptop or paper")
        sub.add_argument(
            "--plugin", action="append", default=[], metavar="FILE.py",
            help="a file that adds methods, networks or data sets to the package's tables; several times",
        )  # fmt: skip
        sub.add_argument("--store", metavar="DIR", help="where records and checkpoints are kept")
        sub.add_argument(
            "--device", help="cpu, cuda, cuda:1, …; the GPU if there is one; sweep: cuda:0,cuda:1"
        )
        sub.add_argument("--compile", action="store_true", help="train with torch.compile")
        sub.add_argument(
            "--checkpoint-minutes", type=float, metavar="N",
            help="a checkpoint every N minutes, be it within an epoch; else one after each epoch",
        )  # fmt: skip
        sub.add_argument("--tensorboard", metavar="DIR", help="where the columns are drawn as curves")
        sub.add_argument("--dry-run", action="store_true", help="print the resolved configuration only")
        fields = sub.add_argument_group("fields of the configuration, over the preset's")
        for name in _GIVEN:
            words = dict.fromkeys([f"--{name.replace('_', '-')}", f"--{name}"])
            text_to_value = functools.partial(_value, name)
            fields.add_argument(
                *words, dest=name, metavar="VALUE", default=argparse.SUPPRESS, type=text_to_value
            )
    one.add_argument("--fresh", action="store_true", help="train anew, whatever is there")
    one.add_argument(
        "--shard", action="store_true", help="under torchrun: weights and optimizer cut over the devices"
    )
    many.add_argument("--seeds", type=_seeds, help="0,1,2 or 0-2")
    many.add_argument(
        "--grid",
        action="append",
        type=_varied,
        default=[],
        metavar="FIELD=A,B,…",
        help="vary a field; several times",
    )
    many.add_argument("--backend", help="a backend of joblib; its own processes otherwise")
    many.add_argument("--address", metavar="tcp://HOST:PORT", help="a Dask scheduler, whose workers train")

    block = command("design", _design, "Run what is missing of one of the book's experiments.")
    block.add_argument("name", help="of the block, such as A; riembn/evidence/designs.py lists them")
    block.add_argument("--store", required=True, metavar="DIR", help="where records are kept")
    block.add_argument("--device", help="cpu, cuda, …; the GPU if there is one")
    block.add_argument("--dry-run", action="store_true", help="say how much is missing only")
    for sub in (one, many, block):
        sub.add_argument("--data", metavar="DIR", help="folder of the data sets (else RIEMBN_DATA)")
    for sub in (many, block):
        sub.add_argument("--jobs", type=int, default=1, help="processes side by side; -1: one a core, or a GPU")
        sub.add_argument("--retry-failed", action="store_true", help="run again what failed before")

    chapter = command("new-chapter", _new_chapter, "Write a chapter of the book that varies a field, or copy one.")
    chapter.add_argument("name", help="lower-case words with hyphens, such as momentum")
    chapter.add_argument(
        "--vary", type=_varied, action="append", default=[], metavar="FIELD=A,B,…",
        help="the field and its values, of which the first is the baseline; field method: names of methods",
    )  # fmt: skip
    chapter.add_argument("--from", dest="source", metavar="CHAPTER", help="copy a chapter, such as 09-clipping")
    chapter.add_argument("--preset", help="what it starts from, beside --vary (vgg-13/cifar10/sgd-g)")
    chapter.add_argument("--plugin", action="append", default=[], metavar="FILE.py", help="as for train")

    shown = command("show", _show, "One line a record of a store, and one a run that failed.")
    reported = command(
        "report", _report, "The test errors of a store over seeds, or what it says of the claims."
    )
    reported.add_argument("--claims", action="store_true", help="each claim of the papers: supported or not?")
    verified = command("verify", _verify, "Say which records of a store are damaged.")
    merged = command("merge", _merge, "Take over the records of other stores.")
    pruned = command("prune", _prune, "Remove the checkpoints of runs whose records are there.")
    exported = command("export", _export, "Write all records of a store as one table.")
    for sub in (shown, reported, verified, merged, pruned, exported):
        sub.add_argument("--store", required=True, metavar="DIR", help="the store's folder")
    merged.add_argument("source", nargs="+", metavar="DIR", help="a store to take records from")
    exported.add_argument("--csv", required=True, metavar="FILE", help="one row a run and epoch")
    return parser


def _end_with_the_reader() -> None:
    """Where a command only prints, as ``show | head`` does: end without a word once nobody reads on."""
    only_prints = not {"train", "sweep", "design"} & set(sys.argv[1:2]) or "--dry-run" in sys.argv
    if only_prints and hasattr(signal, "SIGPIPE"):  # Windows has none
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)


if __name__ == "__main__":
    _end_with_the_reader()
    sys.exit(main())
