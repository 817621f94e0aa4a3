"""Digests of what a chapter's output depends on, by which a build tells what has to run again."""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Iterable
from pathlib import Path

from website.contents import Page

# Of a cell that reads what is not among the runs it says it is drawn from: all of them, or which are there by now.
WHOLE_STORE = re.compile(
    r"\bstore\.frame\(|\)\.frame\(|\bclaims\b|\.(missing|remaining)\(|\bpages\.(outcome|awaited)\("
)


def code_digest(root: Path, page: Page, profile: str) -> str:
    """Of the chapter, the package, the requirements, the profile and the Python that runs them.

    And of the benchmarks, for a chapter that is drawn from them.
    """
    measured = sorted((root / "book" / "benchmarks").glob("*.json"))
    if "chapter.benchmarks(" not in page.source.read_text(encoding="utf-8"):
        measured = []
    return _digest(root, [page.source, *measured], f"{profile} {package_digest(root)}")


def package_digest(root: Path) -> str:
    """Of the package with its C sources, the requirements, and the Python that runs them."""
    package = sorted(
        file
        for suffix in ("py", "c", "h")
        for file in (root / "riembn").rglob(f"*.{suffix}")
    )
    said = f"{platform.python_version()} {platform.machine()}"
    return _digest(root, [*package, root / "requirements.txt"], said)


def records_digest(root: Path, page: Page, profile: str, used: Iterable[str]) -> str:
    """Of the records that a chapter read: those of the runs that it named, or all, if it reads the whole store
    or waits for runs that are not there."""
    folders = stores(root, profile)
    cells = json.loads(page.source.read_text(encoding="utf-8"))["cells"]
    if any(WHOLE_STORE.search("".join(cell["source"])) for cell in cells if cell["cell_type"] == "code"):
        return _digest(root, sorted(folders[0].glob("*.json")))
    found = (file for digest in set(used) for folder in folders for file in folder.glob(f"*-{digest}.json"))
    return _digest(root, sorted(found))


def records(root: Path, profile: str) -> Path:
    """The folder of a profile's records."""
    return root / ("_build/records/smoke" if profile == "smoke" else "book/records")


def stores(root: Path, profile: str) -> list[Path]:
    """Where a chapter may have its records: in its profile's folder, or in that of smoke, if it trains there always."""
    return list(dict.fromkeys([records(root, profile), records(root, "smoke")]))


def _digest(root: Path, files: Iterable[Path], said: str = "") -> str:
    whole = hashlib.sha256(said.encode())
    for file in files:
        content = file.read_bytes()
        whole.update(f"\0{file.relative_to(root).as_posix()}\0{len(content)}\0".encode())
        whole.update(content)
    return whole.hexdigest()
