"""The command behind ci/bench."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from riembn.experiment.files import write_whole

from .contestants import CONTESTANTS
from .machine import describe, is_busy, slug
from .parameters import NETWORKS, STACKS
from .report import print_machine, print_set, print_targets, spoken
from .step import measure_set
from .targets import step_targets
from .training_step import measure_training_step

ROOT = Path(__file__).resolve().parents[2]
SETS = (*NETWORKS, *STACKS)
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
    if is_busy(told):
        print(
            f"Note: the machine is not quiet (load average {told['load_average'][0]}); close what else runs."
        )
    record: dict[str, Any] = {
        "schema": 1,
        "benchmark": asked.command,
        "device": slug(device),
        "quick": asked.quick,
        "environment": told,
    }
    record |= _step(asked, device)
    print_targets(record["targets"])
    folder = "_build/benchmarks" if asked.quick else "book/benchmarks"
    out = asked.out or ROOT / folder / f"{asked.command}-{slug(device)}.json"
    write_whole(out, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())
    print(f"The record: {out}")
    return 0


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
    parts = ("sets", "training", "allocator")
    step.add_argument("--parts", nargs="+", choices=parts, default=parts, help="default: all three")
    for command in (step,):
        command.add_argument(
            "--quick", action="store_true", help="see that it works, in seconds; numbers mean nothing"
        )
        command.add_argument(
            "--out", type=Path, help="the record; default: book/benchmarks/COMMAND-DEVICE.json"
        )
        command.add_argument("--device", help="cpu or cuda; default: the GPU if there is one")
        command.add_argument("--threads", type=int, help="of torch; default: as many as it takes itself")
        command.add_argument("--limit", type=float, default=300.0, help="seconds for each set (default 300)")
        command.add_argument("--commit", help="of the code, where it does not lie in a git checkout")
    return parser.parse_args(list(arguments) or ["step"])


def _step(asked: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    limits = {"limit": asked.limit, "min_rounds": 3 if asked.quick else 9}
    if asked.quick:
        limits |= {"limit": 0.5}
    record: dict[str, Any] = {"sets": []}
    sets = asked.sets or (["stack-1e6"] if asked.quick else SETS)
    for name in sets if "sets" in asked.parts else ():
        only = asked.contestants or (list(CONTESTANTS) if asked.quick else None)
        record["sets"].append(measure_set(name, device, only=only, quick=asked.quick, **limits))
        print_set(record["sets"][-1])
    if "training" in asked.parts:
        whole = measure_training_step(device, quick=asked.quick, width=0.01, **limits)
        record["training_step"] = whole
        print(f"whole training step, {whole['network']}: SGD-G / SGD fused = {spoken(whole['ratio'])}")
    if "allocator" in asked.parts and device.type == "cpu" and sys.platform == "linux":
        record["kept_memory"] = _with_kept_memory(asked)
        print("\nThe same, with an allocator that keeps its memory:")
        print_set(record["kept_memory"]["set"])
    record["targets"] = step_targets({**record, "device": device.type})
    return record


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
