"""An extension of Sphinx: docstrings of the package, plain text with names in backticks, become reST."""

from __future__ import annotations

import re
from typing import Any


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _to_rest, priority=100)  # before napoleon reads its sections
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _to_rest(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    # The result as a field, and no colon in the first line of an attribute: else what is before it becomes a type.
    lines[:] = [":returns:" if line == "Returns:" else plain_to_rest(line) for line in lines]
    if what in ("attribute", "data", "property") and lines:
        lines[:1] = re.sub(r" (?=[^ :]+: )", "\n", lines[0], count=1).split("\n")


def plain_to_rest(line: str) -> str:
    """Names in single backticks as code; bars and stars that enclose no words, as in |w| and "layer.*", as they are."""
    parts = re.split(r"(``.*?``|:[\w:]+:`[^`]*`|`[^`]+`|\*{1,2}[A-Za-z][\w ,'-]*\*{1,2})", line)
    for place, part in enumerate(parts):
        if place % 2 == 0:
            parts[place] = re.sub(r"(?<!\\)([|*])", r"\\\1", part)
        elif part.startswith("`") and not part.startswith("``"):
            parts[place] = f"`{part}`"
    return "".join(parts)
