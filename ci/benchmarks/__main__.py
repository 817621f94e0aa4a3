"""The command behind ci/bench."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from riembn.experiment.files import write_whole

from .augmentation import measure_augmentation
from .captured import measure_captured
from .contestants import CONTESTANTS
from .freed_memory import measure_freed_memory
from .loop_overhead import measure_loop
from .machine import describe, slug
from .networks import NETWORKS as SPLIT_NETWORKS
from .parameters import NETWORKS, STACKS
from .report import print_captured, print_machine, print_parts, print_set, print_split, print_targets, spoken
from .splits import measure_split
from .step import measure_set
from .step_parts import measure_all_parts
from .sweep_speed import measure_sweep
from .targets import split_targets, step_targets, train_targets
from .throughput import NETWORK, measure_throughput
from .training_step import measure_training_step

ROOT = Path(__file__).resolve().parents[2]
SETS = (*NETWORKS, *STACKS)
STEP_PARTS = ("sets", "training", "captured", "allocator")
TRAIN_PARTS = ("parts", "sweep", "augmentation", "loop", "memory", "throughput")
# glibc then takes large blocks from its heap and keeps them, instead of asking the system for each anew.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**32 - 1),
    "MALLOC_TOP_PAD_": str(2**26),
}
KEPT = ("SGD fused", "Adam fused", "SGD-G fused", "SGD-G foreach", "SGD-G loop", "SGD-G plain eager",
        "geoopt RiemannianSGD", "adamp SGDP")  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    asked = _arguments(arguments)
    device = torch.device(asked.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if asked.threads:
        torch.set_num_threads(asked.threads)
    told = describe(device, asked.commit)
    print_machine(told)
    if not told["quiet"]:
        print(
            f"Note: the machine is not quiet (others use {told['others']:.0%} of it); close what else runs."
        )
    record: dict[str, Any] = {
        "schema": 1,
        "benchmark": asked.command,
        "device": slug(device),
        "kind": device.type,
        "quick": asked.quick,
        "environment": told,
    }
    out = asked.out or ROOT / _folder(asked) / f"{asked.command}-{slug(device)}.json"
    if asked.command == "split":
        for networks in _split(asked, out, told["commit"]):  # half an hour: what is there is kept
            record["networks"] = _rounded(networks)
            record["targets"] = split_targets(record)
            _write(out, record)
    else:
        train = asked.command == "train"
        record = _earlier(out, record) | _rounded(record | (_train if train else _step)(asked, device))
        record["targets"] = (train_targets if train else step_targets)(record)
        _write(out, record)
    print_targets(record["targets"])
    print(f"The record: {out}")
    return 0


def _write(out: Path, record: dict[str, Any]) -> None:
    write_whole(out, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())


def _earlier(out: Path, record: dict[str, Any]) -> dict[str, Any]:
    """The parts that stand in a record of the same code in the same place, of which others are measured now."""
    if not out.exists():
        return {}
    old, passing = json.loads(out.read_text()), ("others", "quiet")
    before, now = ({k: v for k, v in one["environment"].items() if k not in passing} for one in (old, record))
    same = all(old[key] == record[key] for key in ("benchmark", "device", "quick"))
    return old if same and before == now else {}


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="ci/bench", description="Measure, print a table, and keep a record."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    step = commands.add_parser("step", help="what an optimizer step costs, beside torch's own and peers'")
    step.add_argument(
        "--sets", nargs="*", choices=SETS, metavar="SET", help=f"parameter sets: {', '.join(SETS)}"
    )
    step.add_argument(
        "--contestants",
        nargs="+",
        choices=CONTESTANTS,
        metavar="NAME",
        help='such as "SGD-G fused"; default: all',
    )
    kept = "; --out keeps its other parts, of the same commit on the same machine"
    step.add_argument("--parts", nargs="+", choices=STEP_PARTS, default=STEP_PARTS, help="default: all" + kept)
    train = commands.add_parser("train", help="where the time of a run goes")
    train.add_argument("--parts", nargs="+", choices=TRAIN_PARTS, default=TRAIN_PARTS, help="default: all" + kept)
    split = commands.add_parser("split", help="what riembn.split says of many networks, and whether it is right")
    split.add_argument(
        "--networks", nargs="+", choices=SPLIT_NETWORKS, metavar="NAME", help="only these; --out keeps its others"
    )
    for command in (step, train, split):
        command.add_argument(
            "--quick", action="store_true", help="see that it works, in seconds; numbers mean nothing"
        )
        command.add_argument(
            "--out",
            type=Path,
            help="the record; default: COMMAND-DEVICE.json in book/benchmarks, or in _build/benchmarks for a part",
        )
        command.add_argument("--device", help="cpu or cuda; default: the GPU if there is one")
        command.add_argument("--threads", type=int, help="of torch; default: as many as it takes itself")
        command.add_argument(
            "--limit", type=float, default=300.0, help="seconds for each measurement (default 300; sweeps twice that)"
        )
        command.add_argument("--commit", help="of the code, where it does not lie in a git checkout")
    split.set_defaults(device="cpu")
    words = list(arguments)
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help")):
        words.insert(0, "step")
    return parser.parse_args(words)


def _folder(asked: argparse.Namespace) -> str:
    """Only a whole measurement takes the place of the one that the book is drawn from."""
    if asked.command == "step":
        whole = not asked.sets and not asked.contestants and tuple(asked.parts) == STEP_PARTS
    elif asked.command == "split":
        whole = not asked.networks
    else:
        whole = tuple(asked.parts) == TRAIN_PARTS
    return "book/benchmarks" if whole and not asked.quick else "_build/benchmarks"


def _step(asked: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    limits = _limits(asked)
    record: dict[str, Any] = {"sets": []} if "sets" in asked.parts else {}
    sets = asked.sets or (["stack-1e6"] if asked.quick else SETS)
    for name in sets if "sets" in asked.parts else ():
        only = asked.contestants or (list(CONTESTANTS) if asked.quick else None)
        record["sets"].append(measure_set(name, device, only=only, quick=asked.quick, **limits))
        print_set(record["sets"][-1])
    if "training" in asked.parts:
        whole = measure_training_step(device, quick=asked.quick, width=0.01, **limits)
        record["training_step"] = whole
        print(f"whole training step, {whole['network']}: SGD-G / SGD fused = {spoken(whole['ratio'])}")
    if "captured" in asked.parts and device.type == "cuda":
        record["captured"] = [
            measure_captured(name, device, quick=asked.quick, **limits)
            for name in asked.sets or (sets if asked.quick else NETWORKS)
        ]
        print_captured(record["captured"])
    if "allocator" in asked.parts and device.type == "cpu" and sys.platform == "linux":
        record["kept_memory"] = _with_kept_memory(asked)
        print("\nThe same, with an allocator that keeps its memory:")
        print_set(record["kept_memory"]["set"])
    return record


def _train(asked: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    limits = _limits(asked)
    record: dict[str, Any] = {}
    if "parts" in asked.parts:
        record["parts"] = measure_all_parts(device, quick=asked.quick)
        print_parts(record["parts"])
    if "sweep" in asked.parts:
        record["sweep"] = measure_sweep(device, quick=asked.quick, limit=2 * asked.limit)
        for name, ratio in record["sweep"]["speedup"].items():
            print(f"{name} sweep of a process, one worker / two: {spoken(ratio)}", flush=True)
    if "augmentation" in asked.parts:
        record["augmentation"] = measure_augmentation(device, quick=asked.quick, **limits)
        print(
            f"augmentation, DataLoader / on the device: {spoken(record['augmentation']['speedup'])}",
            flush=True,
        )
    if "loop" in asked.parts:
        record["loop"] = measure_loop(device, quick=asked.quick)
        print(f"training loop / bare steps: {spoken(record['loop']['ratio'])}", flush=True)
    if "memory" in asked.parts and device.type == "cpu" and (freed := measure_freed_memory(quick=asked.quick)):
        record["freed_memory"] = freed
        print(f"steps, glibc's default / freed memory kept: {spoken(freed['ratio'])}", flush=True)
    if "throughput" in asked.parts:
        if device.type == "cuda":
            record["throughput"] = measure_throughput(device, **limits)
            print(f"{NETWORK}, share of the matrix rate: {spoken(record['throughput']['share'])}")
        else:
            print("throughput: left out, it needs a CUDA device")
    return record


def _split(asked: argparse.Namespace, out: Path, commit: str | None) -> Iterator[list[dict[str, Any]]]:
    """All that is known after each network, in the order of the list; what is not measured anew stays as it was."""
    names = asked.networks or (["U-Net"] if asked.quick else list(SPLIT_NETWORKS))
    found: dict[str, dict[str, Any]] = {}
    if asked.networks and out.exists():
        found = {one["name"]: one for one in json.loads(out.read_text())["networks"]}
    for name in names:
        found[name] = measure_split(name, limit=asked.limit) | {"commit": commit}
        print_split(found[name])
        yield [found[name] for name in SPLIT_NETWORKS if name in found]


def _rounded(value: Any) -> Any:
    """Numbers to six digits: no time is known better."""
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_rounded(entry) for entry in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _limits(asked: argparse.Namespace) -> dict[str, Any]:
    return {"limit": 0.5, "min_rounds": 2} if asked.quick else {"limit": asked.limit, "min_rounds": 9}


def _with_kept_memory(asked: argparse.Namespace) -> dict[str, Any]:
    """One set in a process of its own, since glibc reads its settings at the start."""
    name = "stack-1e6" if asked.quick else "vgg-13"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "record.json")
        command = [
            sys.executable,
            "-m",
            "benchmarks",
            "step",
            "--device",
            "cpu",
            "--parts",
            "sets",
            "--out",
            str(out),
        ]
        command += ["--sets", name, "--limit", str(asked.limit), "--threads", str(torch.get_num_threads())]
        command += ["--contestants", *KEPT, *(["--quick"] if asked.quick else [])]
        subprocess.run(
            command, env={**os.environ, **KEEP_MEMORY}, cwd=ROOT, check=True, stdout=subprocess.DEVNULL
        )
        (found,) = json.loads(out.read_text())["sets"]
    return {"settings": KEEP_MEMORY, "set": found}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
