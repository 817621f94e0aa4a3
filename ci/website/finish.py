"""Complete a rendered site with what Sphinx leaves out or does differently from build to build."""

from __future__ import annotations

import functools
import json
import re
import zlib
from pathlib import Path

from website.contents import pages
from website.lean import keep_used_icons
from website.news import feed, moved, signpost
from website.opening import portable, timed
from website.previews import previews

_ASSET = re.compile(r'((?:href|src)=")((?:[^"?:#]*/)?_static/[^"?#]+\.(?:css|js))(?:\?v=\w+)?"')


def finish(root: Path, site: Path) -> None:
    """Complete the site in its folder."""
    if news := feed(root):
        (site / "_static" / "changes.xml").write_text(news, encoding="utf-8")
    for old, new in moved(root).items():
        (site / "book" / f"{old}.html").write_text(signpost(new), encoding="utf-8")
    for page in (page for page in pages(root) if page.is_chapter):
        # to take along: what Sphinx puts here has all figures of the page in it a second time
        (site / "_sources" / f"{page.document}.ipynb").write_bytes(portable(page))
        rendered = site / f"{page.document}.html"
        rendered.write_text(timed(root, page.name, rendered.read_text(encoding="utf-8")), encoding="utf-8")
    keep_used_icons(site)
    (site / "_static" / "previews-data.js").write_text(previews(site), encoding="utf-8")
    _version_assets(site)
    _forget_words_that_are_gone(site / "searchindex.js")


def _version_assets(site: Path) -> None:
    """Mark style sheets and scripts with what is in them, so that a browser asks for a changed one again.

    Sphinx marks them too, but not those that its extensions write late, and these only when a site is built anew.
    """

    @functools.cache
    def mark(file: Path) -> str:
        return f"?v={zlib.crc32(file.read_bytes()):08x}"

    for page in sorted(site.rglob("*.html")):
        inside = page.relative_to(site)
        if inside.parts[0] == "_static":
            continue

        def marked(found: re.Match[str], page: Path = page) -> str:
            _, _, name = found[2].rpartition("_static/")
            file = site / "_static" / name
            return f'{found[1]}{found[2]}{mark(file) if file.is_file() else ""}"'

        text = page.read_text(encoding="utf-8")
        page.write_text(_ASSET.sub(marked, text), encoding="utf-8")


def _forget_words_that_are_gone(index: Path) -> None:
    """Words that no page has any more: Sphinx keeps them, without a page, until a site is built anew."""
    text = index.read_text(encoding="utf-8")
    start, end = text.index("(") + 1, text.rindex(")")
    found = json.loads(text[start:end])
    for kind in ("terms", "titleterms"):
        found[kind] = {word: pages for word, pages in found[kind].items() if pages != []}
    told = json.dumps(found, separators=(",", ":"), sort_keys=True)
    index.write_text(text[:start] + told + text[end:], encoding="utf-8")
