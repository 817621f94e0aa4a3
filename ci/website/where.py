"""Where a run, a chapter or a measurement was computed, in words: of the environment that was noted down with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def commit(where: Mapping[str, Any]) -> str:
    """A commit as one reads it; a star says that the package differed from it."""
    return where["commit"][:7] + "*" * bool(where.get("dirty")) if where.get("commit") else "unknown"


def device(where: Mapping[str, Any]) -> str:
    """The name of the processor, or of the GPU."""
    return (where.get("cpu") if where.get("device") == "cpu" else where.get("device")) or "unknown"


def versions(where: Mapping[str, Any]) -> str:
    """Those of Python, torch and the package, where they were noted down."""
    names = {"python": "Python", "torch": "torch", "riembn": "riembn"}
    return ", ".join(f"{name} {where[key]}" for key, name in names.items() if where.get(key))
