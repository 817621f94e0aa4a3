"""The map of the chapters on the front page: each with its question, part by part."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from website.contents import Page, pages

MAP = "<!-- map -->"


def chapter_map(root: Path) -> str:
    """Markdown of a card for each chapter, in the parts of ``_toc.yml``."""
    parts = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8")).get("parts", [])
    known = {page.document: page for page in pages(root)}
    lines = []
    for part in parts:
        listed = [known[entry["file"]] for entry in part["chapters"] if "file" in entry]
        cards = [card for page in listed if page.is_chapter for card in _card(page)]
        if cards:
            lines += [f"**{part['caption']}**", "", "::::{grid} 1 2 2 3", ":gutter: 2", ":class-container: map", ""]
            lines += [*cards, "::::", ""]
    return "\n".join(lines)


def _card(page: Page) -> list[str]:
    number = page.name.partition("-")[0].lstrip("0")
    head = f":::{{grid-item-card}} {number} {page.title}"
    return [head, f":link: {page.name}", ":link-type: doc", question(page), ":::", ""]


def question(page: Page) -> str:
    """What a chapter asks: the first question of its opening, or else its first sentence; roles become plain words."""
    opening = page.opening.replace("\n", " ")
    opening = re.sub(r"\{[\w:]+\}`([^`<]+?)(?:\s*<[^`]*>)?`", r"\1", opening)
    sentences = re.split(r"(?<=[.?!])\s+", opening)
    asked = [sentence for sentence in sentences if sentence.endswith("?")]
    return (asked or sentences or [""])[0]
