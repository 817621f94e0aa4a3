"""Has anything changed that a chapter's output depends on?"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable
from pathlib import Path

from website.contents import Page


def code_digest(root: Path, page: Page, profile: str) -> str:
    """Of the chapter, the package, the requirements, the profile and the Python that runs them.

    And of the benchmarks, for a chapter that is drawn from them.
    """
    package = sorted((root / "riembn").rglob("*.py"))
    measured = sorted((root / "book" / "benchmarks").glob("*.json"))
    if "chapter.benchmarks(" not in page.source.read_text(encoding="utf-8"):
        measured = []
    said = f"{profile} {platform.python_version()} {platform.machine()}"
    return _digest(root, [page.source, *package, *measured, root / "requirements.txt"], said)


def records_digest(root: Path, profile: str) -> str:
    """Of the records that chapters read; smoke runs keep theirs to themselves."""
    return "" if profile == "smoke" else _digest(root, sorted((root / "book" / "records").glob("*.json")))


def _digest(root: Path, files: Iterable[Path], said: str = "") -> str:
    whole = hashlib.sha256(said.encode())
    for file in files:
        content = file.read_bytes()
        whole.update(f"\0{file.relative_to(root).as_posix()}\0{len(content)}\0".encode())
        whole.update(content)
    return whole.hexdigest()
