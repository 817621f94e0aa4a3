"""What a link within the book leads to, cut out of its page, to be shown where the link stands."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from itertools import accumulate
from pathlib import Path
from urllib.parse import unquote, urldefrag

_LONGEST = 6000  # characters of HTML; a preview is read at a glance
_DRAWING = re.compile(r"<svg.*?</svg>|<script.*?</script>", re.DOTALL)


def previews(site: Path) -> str:
    """The script that hands pages the previews of all terms, sources, formulas and theorems that are linked to."""
    pages = {page.relative_to(site).as_posix(): page for page in sorted((site / "book").glob("*.html"))}
    texts = {name: _DRAWING.sub("", page.read_text(encoding="utf-8")) for name, page in pages.items()}
    linked: dict[str, set[str]] = {name: set() for name in pages}
    for name, text in texts.items():
        for address in re.findall(r'<a class="[^"]*\binternal\b[^"]*" href="([^"]*#[^"]+)"', text):
            path, anchor = urldefrag(address)
            page = f"book/{path}" if path else name
            if page in linked:
                linked[page].add(unquote(anchor))
    found = {}
    for name, anchors in linked.items():
        if anchors:
            reader = _Parts(texts[name], anchors)
            reader.feed(texts[name])
            parts = {f"{name}#{anchor}": _plain(part) for anchor, part in reader.parts.items()}
            found |= {where: part for where, part in parts.items() if len(part) <= _LONGEST}
    told = json.dumps(dict(sorted(found.items())), ensure_ascii=False, separators=(",", ":"))
    return f"window.riembnPreviews = {told};\n"


def _plain(part: str) -> str:
    """Without what would be a second link or a second anchor of the same name."""
    part = re.sub(r'<a class="headerlink".*?</a>|<span class="backrefs">.*?</span>', "", part, flags=re.DOTALL)
    part = re.sub(r"</?a\b[^>]*>", "", part)
    return re.sub(r'\s(?:id|role|tabindex)="[^"]*"', "", part).strip()


class _Parts(HTMLParser):
    """The elements that have one of the ids; of a term of a list, what follows it as well."""

    def __init__(self, text: str, anchors: set[str]) -> None:
        super().__init__(convert_charrefs=False)
        self.parts: dict[str, str] = {}
        self._text = text
        self._anchors = anchors
        self._lines = [0, *accumulate(len(line) for line in text.splitlines(keepends=True))]
        self._open: list[tuple[str, str, int]] = []  # anchor, tag, start
        self._depth: dict[str, int] = {}
        self._terms: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for anchor, own, _ in self._open:
            self._depth[anchor] += tag == own
        values = dict(attrs)
        anchor = values.get("id") or ""
        shown = re.search(r"\b(citation|math|proof|exercise|solution)\b", values.get("class") or "") or tag == "dt"
        if anchor in self._anchors and shown and anchor not in self.parts:
            self._open.append((anchor, tag, self._offset()))
            self._depth[anchor] = 1
            if tag == "dt":
                self._terms.append(anchor)
        if tag == "dd" and self._terms:
            for term in self._terms:
                self._open.append((term, tag, self._offset()))
                self._depth[term] = 1
            self._terms = []

    def handle_endtag(self, tag: str) -> None:
        for one in list(self._open):
            anchor, own, start = one
            self._depth[anchor] -= tag == own
            if not self._depth[anchor]:
                end = self._text.index(">", self._offset()) + 1
                self.parts[anchor] = self.parts.get(anchor, "") + self._text[start:end]
                self._open.remove(one)

    def _offset(self) -> int:
        line, column = self.getpos()
        return self._lines[line - 1] + column
