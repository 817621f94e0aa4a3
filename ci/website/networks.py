"""The tables of the networks that ``riembn.split`` was tried on, drawn from the record of ``ci/bench split``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median_low
from typing import Any

from riembn.pages.drawn import csv_text
from website.benchmarks import benchmarks
from website.endings import table
from website.numbers import below

_RECORD = "split-cpu"
SOURCES = ("torchvision", "timm", "riembn")

_HEAD = (
    *("network", "weights", "rows span", "share", "time", "memory", "own ε"),
    *("tried", "largest change", "smallest change"),
)
_FIELDS = {
    **{"network": "name", "error": "error", "weights": "weights", "on the sphere": "invariant", "share": "share"},
    **{"seconds": "cpu_seconds", "peak bytes": "peak_bytes", "weight bytes": "weight_bytes", "own ε": "own_eps_change"},
}
"""Columns of the CSV files that the record has as they are."""

_NB, _HYPHEN = "\N{NO-BREAK SPACE}", "\N{NON-BREAKING HYPHEN}"
_USUAL = [4, 3, 64, 64]  # an example that is not named


def summary(root: Path) -> str:
    """What the record says as a whole, where it comes from, and the way to it."""
    record = _record(root)
    networks, where = record["networks"], record["environment"]
    checks = [one["check"] for one in networks if "error" not in one]
    of, tried = (sum(one["invariant"][key] + one["rest"][key] for one in checks) for key in ("of", "tried"))
    wrong = sum(len(one["wrong"]) for one in checks)
    largest = max(c for one in checks if (c := one["invariant"]["largest_change"]) is not None)
    smallest = min(c for one in checks if (c := one["rest"]["smallest_change"]) is not None)
    passes = sorted(one["passes"] for one in networks if "error" not in one)
    usual = median_low(passes)
    measured = len(checks) if len(checks) == len(networks) else f"{len(checks)} of {len(networks)}"
    commits = ", ".join(sorted({one["commit"][:7] for one in networks}))
    busy = "" if where["quiet"] else "; other work ran beside it, so take no time as final"
    return (
        f"{measured} networks were measured. They have {of:,} weights of two or more dimensions. "
        f"Of these {tried:,} were tried, and {wrong or 'no'} verdict{'s' * (wrong > 1)} came out wrong. "
        f"The output changed by at most {_change(largest)} for a weight on the sphere, and by {_change(smallest)} "
        f"or more for any other. A split took {passes[0]} to {passes[-1]} passes, {usual} in {passes.count(usual)} "
        "networks.\n\n"
        f"Measured on {where['cpu']}, threads: {where['threads']}, with torch {where['torch']}, "
        f"torchvision {where['versions']['torchvision']}, timm {where['versions']['timm']}, at commit {commits}{busy}. "
        f"{benchmarks(root)[_RECORD].link()}."
    )


def tried(root: Path, source: str) -> str:
    """A line a network of one source; below it the way to its numbers and to the record."""
    lines = table(_HEAD, [_line(one) for one in _record(root)["networks"] if one["source"] == source])
    return f"{lines}\n\n{below(_file(source), benchmarks(root)[_RECORD].link())}"


def numbers(root: Path) -> dict[str, bytes]:
    """The numbers of each table as CSV, by the place of the file below ``_static``; none where there is no record."""
    if _RECORD not in benchmarks(root):
        return {}
    networks = _record(root)["networks"]
    return {_file(name): _csv([one for one in networks if one["source"] == name]).encode() for name in SOURCES}


def _csv(networks: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for one in networks:
        check = one.get("check", {"invariant": {}, "rest": {}, "wrong": {}})
        on, off = check["invariant"], check["rest"]
        rows.append(
            [
                *(one.get(field) for field in _FIELDS.values()),
                *("×".join(map(str, one["example"])), ", ".join(one.get("granularities", ()))),
                *(on.get("tried", 0) + off.get("tried", 0), len(check["wrong"])),
                *(on.get("largest_change"), off.get("smallest_change")),
            ]
        )
    return csv_text([*_FIELDS, "example", "rows span", "tried", "wrong", "largest change", "smallest change"], rows)


def _line(one: Mapping[str, Any]) -> tuple[str, ...]:
    name = f"`{one['name']}`"
    if one["example"] != _USUAL:
        name += f"<br>{'×'.join(map(str, one['example']))}"
    if "error" in one:
        return (name, one["error"], *("–",) * (len(_HEAD) - 2))
    on, off = one["check"]["invariant"], one["check"]["rest"]
    count, of = (on[key] + off[key] for key in ("tried", "of"))
    sampled = "all" if count == of else f"{count} of {of}"
    if wrong := len(one["check"]["wrong"]):
        sampled += f", {wrong} wrong"
    peak = "–"
    if one["peak_bytes"]:
        times = f" ({one['peak_bytes'] / one['weight_bytes']:.1f}×)" if one["weight_bytes"] > 1e7 else ""
        peak = f"{one['peak_bytes'] / 1e6:.0f}{_NB}MB{times}"
    return (
        name,
        f"{one['invariant']}{_NB}of{_NB}{one['weights']}",
        ", ".join(one["granularities"]).replace(" channels, ", ", ") or "–",
        f"{100 * one['share']:.1f}{_NB}%",
        f"{one['cpu_seconds']:.1f}{_NB}s",
        peak,
        _change(one.get("own_eps_change")),
        sampled,
        _change(on["largest_change"]),
        _change(off["smallest_change"]),
    )


def _change(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0e}".replace("-", _HYPHEN) if 0 < value < 0.001 else f"{value:.1g}"


def _record(root: Path) -> dict[str, Any]:
    return json.loads((root / "book" / "benchmarks" / f"{_RECORD}.json").read_text(encoding="utf-8"))


def _file(source: str) -> str:
    return f"data/which-networks/{source}.csv"
