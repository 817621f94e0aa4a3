"""Which pages does the book have, and which of its chapters are meant by a name?"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml


class BookError(Exception):
    """What is wrong with the book, in one line, and below it what helps to mend it."""


@dataclass(frozen=True)
class Page:
    """One entry of the table of contents; ``document`` is its path without suffix, ``book/09-clipping``."""

    document: str
    source: Path

    @property
    def name(self) -> str:
        return self.source.stem

    @property
    def title(self) -> str:
        """The text of its first heading."""
        found = re.search(r"^# (.*)$", self._text, flags=re.MULTILINE)
        return found[1].strip() if found else self.name

    @property
    def opening(self) -> str:
        """The first paragraph under the title."""
        _, _, below = self._text.partition("# ")
        paragraphs = [part.strip() for part in below.split("\n\n")[1:]]
        return next((part for part in paragraphs if part and not part.startswith((":::", "```", "<"))), "")

    @cached_property
    def _text(self) -> str:
        text = self.source.read_text(encoding="utf-8")
        if self.is_chapter:
            cells = json.loads(text)["cells"]
            text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        return text

    @property
    def is_chapter(self) -> bool:
        return self.source.suffix == ".ipynb"


def pages(root: Path) -> list[Page]:
    """The pages of ``_toc.yml`` in their order."""
    contents = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    found = []
    for document in _documents(contents):
        sources = [root / f"{document}{suffix}" for suffix in (".ipynb", ".md")]
        present = [source for source in sources if source.is_file()]
        if not present:
            raise BookError(
                f"_toc.yml lists {document}, but there is no {document}.ipynb and no {document}.md."
            )
        found.append(Page(document, present[0]))
    return found


def select(names: Sequence[str], chapters: Sequence[Page]) -> list[Page]:
    """The chapters meant by what was typed: ``09-clipping``, ``book/09-clipping.ipynb`` or ``09``."""
    chosen = []
    for name in names:
        stem = Path(name).name.removesuffix(".ipynb")
        matching = [page for page in chapters if stem in (page.name, page.name.partition("-")[0])]
        if len(matching) != 1:
            raise BookError(
                f"Unknown chapter {name!r}; there are {', '.join(page.name for page in chapters)}."
            )
        chosen += matching
    return chosen


def _documents(entry: dict[str, Any]) -> Iterator[str]:
    for key in ("root", "file"):
        if key in entry:
            yield str(entry[key])
    for key in ("parts", "chapters", "sections"):
        for inner in entry.get(key) or []:
            yield from _documents(inner)
