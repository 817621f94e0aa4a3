"""The pages about the package's functions, drawn from their docstrings, and the ways there from the chapters."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence

from nbformat import NotebookNode

from website.contents import Page

_MARK = re.compile(r"<!-- api: ([\w. ]+) -->")


def described(text: str) -> str:
    """A page with the docstrings that it asks for, as directives of autodoc."""

    def directives(asked: re.Match[str]) -> str:
        lines = ["```{eval-rst}"]
        for name in asked[1].split():
            if name.rpartition(".")[2][0].isupper():
                lines += [f".. autoclass:: {name}", "   :members:", ""]
            else:
                lines += [f".. autofunction:: {name}", ""]
        return "\n".join([*lines, "```"])

    return _MARK.sub(directives, text)


def homes(pages: Sequence[Page]) -> dict[str, str]:
    """On which page a function or class is described, by its full name."""
    found = {}
    for page in pages:
        if not page.is_chapter:
            for asked in _MARK.findall(page.source.read_text(encoding="utf-8")):
                found |= dict.fromkeys(asked.split(), page.name)
    return found


def calls(notebook: NotebookNode, known: dict[str, str]) -> list[str]:
    """The described functions and classes that a chapter uses, in the order of their first use."""
    used: dict[str, None] = {}
    named: dict[str, str] = {}
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Import):
                named |= {one.asname or one.name: one.name for one in node.names if one.name.startswith("riembn")}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("riembn"):
                named |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Attribute | ast.Name):
                first, dot, rest = ast.unparse(node).partition(".")
                full = f"{named.get(first, '')}{dot}{rest}"
                if found := _known(full, known):
                    used[found] = None
    return list(used)


def links(names: Sequence[str], known: dict[str, str]) -> str:
    """A line of links, as HTML."""
    shown = [f'<a href="{known[name]}.html#{name}"><code>{name}</code></a>' for name in names]
    return ", ".join(shown)


def _known(name: str, known: dict[str, str]) -> str | None:
    """The name under which a thing is described; rooms hand on what their modules define, so the last part decides."""
    if name in known:
        return name
    room, _, last = name.rpartition(".")
    same = [one for one in known if one.rpartition(".")[2] == last and room and one.startswith(room.partition(".")[0])]
    return same[0] if len(same) == 1 and name.startswith("riembn.") else None
