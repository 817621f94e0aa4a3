"""What does a measurement look like on a terminal?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def print_machine(told: Mapping[str, Any]) -> None:
    where = told["cpu"] if told["device"] == "cpu" else f"{told['device']}, {told['cpu']}"
    commit = (told["commit"] or "unknown")[:12] + (", changed since" if told["dirty"] else "")
    settings = " ".join(f"{k}={v}" for k, v in told["settings"].items()) or "none set"
    print(f"{where}; {told['threads']} threads; torch {told['torch']}; commit {commit}")
    print(f"allocator {told['allocator']}, huge pages {told['huge_pages']}; environment: {settings}")


def print_set(told: Mapping[str, Any]) -> None:
    """One table a parameter set: a line a contestant."""
    for skipped in told["skipped"]:
        print(f"  left out: {skipped['name']}: {skipped['why']}")
    if not told["results"]:
        return
    streams = ", ".join(f"{k} {v['median']:.1f} GB/s" for k, v in told["bandwidth"].items())
    print(f"{told['name']}: {told['parameters']:,} parameters; {told['rounds']} rounds; {streams}")
    bases = list(told["results"][0]["ratios"])
    head = ["", "ms", "quartiles", "GB/s", "of copy", "extra MB", "faults", *(f"/ {base}" for base in bases)]
    rows = []
    for one in told["results"]:
        ms = {key: 1000 * value for key, value in one["seconds"].items()}
        rows.append(
            [
                one["name"],
                f"{ms['median']:.3g}",
                f"{ms['low']:.3g}-{ms['high']:.3g}",
                f"{one['gb_per_s']:.1f}",
                f"{100 * one['share_of_copy']['median']:.0f} %",
                f"{one['extra_bytes'] / 1e6:.1f}",
                f"{one['page_faults']}",
                *(spoken(ratio) for ratio in one["ratios"].values()),
            ]
        )
    print_table(head, rows)
    wide = [one["name"] for one in told["results"] if not one["narrow"]]
    if wide:
        print(f"  time limit reached; a ratio's interval is still wide for: {', '.join(wide)}")


def print_captured(found: Sequence[Mapping[str, Any]]) -> None:
    """Milliseconds of steps that are replayed from a CUDA graph: a line a network."""
    rows = [
        [one["name"], *(f"{1000 * did['seconds']['median']:.3g}" for did in one["results"])] for one in found
    ]
    print_table(["ms, replayed", *(did["name"] for did in found[0]["results"])], rows)


def print_parts(found: Sequence[Mapping[str, Any]]) -> None:
    """Milliseconds of each part of a training step: a line a network."""
    rows = [
        [f"{one['network']} width {one['width']:g}", *(f"{1000 * s:.3g}" for s in one["seconds"].values())]
        for one in found
    ]
    print_table(["ms of a step", *found[0]["seconds"]], rows)


def print_targets(targets: Iterable[Mapping[str, Any]]) -> None:
    rows = [
        [
            one["what"],
            one["set"],
            f"{'<=' if one['at_most'] else '>='} {one['bound']:g}",
            spoken(one),
            one["verdict"],
        ]
        for one in targets
    ]
    if rows:
        print_table(["target", "on", "bound", "measured", ""], rows)


def print_split(told: Mapping[str, Any]) -> None:
    """One network: what its split cost and says, and every verdict that brute force denies."""
    if "error" in told:
        print(f"{told['name']}: {told['error']}", flush=True)
        return
    peak = f", {told['peak_bytes'] / 1e6:.0f} MB for {told['weight_bytes'] / 1e6:.0f}" if told["peak_bytes"] else ""
    print(
        f"{told['name']}: {told['invariant']} of {told['weights']} weights, {told['passes']} passes, "
        f"{told['cpu_seconds']:.1f} s of processor time{peak}; wrong: {len(told['check']['wrong'])}",
        flush=True,
    )
    for name, why in told["check"]["wrong"].items():
        print(f"  {name}: {why}")


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their longest entry; the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        print("  " + "  ".join(cells).rstrip())
    print(flush=True)


def spoken(value: Mapping[str, float | None]) -> str:
    """``1.13 (1.11-1.15)``: a median and its interval."""
    text = f"{value['median']:.3g}"
    if value.get("low") is None or value.get("high") is None:
        return text
    return f"{text} ({value['low']:.3g}-{value['high']:.3g})"
