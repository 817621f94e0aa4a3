"""Check that the site is whole: chapters run to their end, a page for each entry, nothing fetched from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat

from website.contents import BookError, Page

SHOWN = 30  # lines of what is wrong
_DRAWING = re.compile(r"<svg.*?</svg>", re.DOTALL)  # most of a page, and without links


def check(root: Path, pages: Sequence[Page]) -> None:
    """Raise a BookError that has a line for each page and what is wrong with it."""
    site = root / "_build" / "html"
    wrong = [f"{page.document}: {what}" for page in pages for what in _wrong(root, site, page)]
    wrong += [f"{page}: {what}" for page, what in _wrong_links(site)]
    if wrong:
        more = [f"and {len(wrong) - SHOWN} more"] if len(wrong) > SHOWN else []
        lines = [f"  {line}" for line in [*wrong[:SHOWN], *more]]
        raise BookError("\n".join([f"The site is not whole ({len(wrong)}):", *lines]))


def _wrong(root: Path, site: Path, page: Page) -> Iterator[str]:
    if page.is_chapter:
        yield from _not_executed(root / "_build" / f"{page.document}.ipynb")
    rendered = site / f"{page.document}.html"
    if not rendered.is_file():
        yield "there is no page for it"
    elif "<h1" not in rendered.read_text(encoding="utf-8"):
        yield "its page has no heading"


def _not_executed(staged: Path) -> Iterator[str]:
    notebook = nbformat.read(staged, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    for place, cell in enumerate(code, 1):
        status = cell.metadata.get("papermill", {}).get("status")
        if status != "completed" or cell.execution_count is None:
            yield f"code cell {place} was not executed to its end ({status})"
        elif any(out.output_type == "error" for out in cell.outputs):
            yield f"code cell {place} failed"
    if not any(cell.outputs for cell in code):
        yield "no cell of it shows anything"


class _Resources(HTMLParser):
    """What a page loads, where its links go, and which anchors it has."""

    LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "video": "src"}

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        # rel=canonical, rel=next and the like are addresses, not things that a browser loads
        if tag in self.LOADED and not (tag == "link" and values.get("rel") in ("canonical", "next", "prev")):
            self.loaded.append(values.get(self.LOADED[tag], ""))
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])


def _wrong_links(site: Path) -> Iterator[tuple[str, str]]:
    read = {}
    for page in sorted(site.rglob("*.html")):
        if "_static" not in page.relative_to(site).parts:
            read[page] = _Resources()
            read[page].feed(_DRAWING.sub("", page.read_text(encoding="utf-8")))
    for page, found in read.items():
        name = page.relative_to(site).as_posix()
        for address in found.loaded:
            if urlsplit(address).netloc:
                yield name, f"loads {address} from outside"
        for address in found.links:
            parts = urlsplit(address)
            # absolute paths are those of 404.html, which is shown at any address
            if parts.scheme or parts.netloc or parts.path.startswith("/"):
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if not target.exists():
                yield name, f"links to {address}, which does not exist"
            elif parts.fragment and target in read and unquote(parts.fragment) not in read[target].anchors:
                yield name, f"links to {address}, an anchor that does not exist"
