"""The feed of what changed, drawn from the page on it."""

from __future__ import annotations

import os
import re
from html import escape
from pathlib import Path


def feed(root: Path) -> str | None:
    """An Atom feed of ``book/changelog.md``, an entry a day; None if there is no such page."""
    page = root / "book" / "changelog.md"
    if not page.is_file():
        return None
    parts = re.split(r"^## (\d{4}-\d\d-\d\d)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    days = list(zip(parts[1::2], parts[2::2], strict=True))
    home = (os.environ.get("BOOK_URL") or "https://example.invalid/riembn").rstrip("/")
    there = f"{home}/book/changelog.html"
    entries = [
        f"<entry><title>{day}</title><id>{there}#{day}</id><updated>{day}T00:00:00Z</updated>"
        f'<link href="{there}"/><content type="text">{escape(" ".join(text.split()))}</content></entry>'
        for day, text in days
    ]
    head = (
        '<?xml version="1.0" encoding="utf-8"?>\n<feed xmlns="http://www.w3.org/2005/Atom">'
        f"<title>Riemannian Batch Normalization</title><id>{home}/</id>"
        f"<updated>{max(day for day, _ in days)}T00:00:00Z</updated><author><name>The riembn authors</name></author>"
    )
    return "\n".join([head, *entries, "</feed>\n"])


def moved(root: Path) -> dict[str, str]:
    """Pages that stand elsewhere now, from ``book/moved.txt``: a line each, ``old-name new-name``."""
    file = root / "book" / "moved.txt"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return dict(line.split() for line in lines if line.strip() and not line.startswith("#"))


def signpost(target: str) -> str:
    """The page left behind where one has moved."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>This page has moved</title>'
        f'<meta http-equiv="refresh" content="0; url={target}.html"><link rel="canonical" href="{target}.html"></head>'
        f'<body><h1>This page has moved</h1><p><a href="{target}.html">It is here now.</a></p></body></html>\n'
    )
