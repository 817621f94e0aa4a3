"""The records of ``ci/bench`` that pages are drawn from: what a page says of each, and the way to its file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from html import escape
from pathlib import Path

from website import where


@dataclass(frozen=True)
class Benchmark:
    """What a page says about one record."""

    name: str
    device: str
    commit: str
    versions: str

    def link(self, text: str = "") -> str:
        """To its file, as a page of the book has it."""
        text = text or f"Record of the measurement ({self.name}, {self.device})"
        return f'<a href="../_static/benchmarks/{escape(self.name)}.json" download="">{escape(text)}</a>'


def files(root: Path) -> list[Path]:
    """The records that git keeps."""
    return sorted((root / "book" / "benchmarks").glob("*.json"))


def benchmarks(root: Path) -> dict[str, Benchmark]:
    """The records by their names, such as ``step-cpu``."""
    found = {}
    for file in files(root):
        on = json.loads(file.read_text(encoding="utf-8"))["environment"]
        found[file.stem] = Benchmark(file.stem, where.device(on), where.commit(on), where.versions(on))
    return found
