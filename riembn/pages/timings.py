"""What ``ci/bench`` measured, as a chapter tells it: the machine, a value with its interval, the targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas


def interval(value: Mapping[str, float | None], digits: int = 2) -> str:
    """A median with its 95 % interval, such as ``1.07 (1.03 to 1.13)``.

    Args:
        value: ``median``, ``low`` and ``high``; the ends are ``None`` where there were too few rounds for an interval.
        digits: After the point.
    """
    ends = [f"{end:.{digits}f}" for end in (value["low"], value["high"]) if end is not None]
    return f"{value['median']:.{digits}f}" + (f" ({' to '.join(ends)})" if ends else "")


def machine(record: Mapping[str, Any]) -> pandas.DataFrame:
    """What a record was measured on: columns ``what`` and ``which``."""
    where, versions = record["environment"], record["environment"]["versions"]
    rest = "quiet" if where["quiet"] else "NOT quiet: take no time here as final"
    rows = {
        "device": where["cpu"] if record["kind"] == "cpu" else f"{where['device']}, {where['cpu']}",
        "threads": f"{where['threads']} of torch, on {where['cores']} cores",
        "allocator": f"{where['allocator']}, huge pages: {where['huge_pages']}",
        "environment": " ".join(f"{k}={v}" for k, v in where["settings"].items()) or "none set",
        "versions": ", ".join(f"{k} {v}" for k, v in {"torch": where["torch"], **versions}.items()),
        "commit": (where["commit"] or "unknown")[:12] + (", with changes" if where["dirty"] else ""),
        "other work": f"{where['others']:.0%} of the cores at the start, {rest}",
    }
    return pandas.DataFrame(rows.items(), columns=["what", "which"])


def targets(measured: Mapping[str, Mapping[str, Any]]) -> pandas.DataFrame:
    """Every target with its bound and what was measured, of the records by device."""
    rows = [
        {
            "on": device,
            "target": target["what"],
            "set": target["set"],
            "bound": f"{'≤' if target['at_most'] else '≥'} {target['bound']:g}",
            "measured": interval(target),
            "verdict": target["verdict"],
        }
        for device, record in measured.items()
        for target in record["targets"]
    ]
    return pandas.DataFrame(rows, columns=["on", "target", "set", "bound", "measured", "verdict"])
