"""A reader of ePubs runs no scripts and has no files of the site: formulas become MathML, and such links their text."""

from __future__ import annotations

import html
import posixpath
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit
from zipfile import ZipFile

from latex2mathml.converter import convert

Macros = Mapping[str, str | list[str | int]]
"""As MathJax has them: by name what a command stands for, in a list with the number of its arguments."""

_FORMULA = re.compile(r'(<(span|div) class="math[^>]*>(?:\s*<span class="eqno">.*?</span>)?)(.*?)(</\2>)', re.S)
_TITLE_OF_OPEN_CELL = re.compile(r'<p class="expanded[^>]*>.*?</p>\s*', re.S)
_LINK = re.compile(r'<a\b[^>]*\bhref="([^"#][^"]*)"[^>]*>(.*?)</a>( · )?', re.S)


def readable(file: Path, macros: Macros) -> None:
    """Change the pages of an ePub in its place, and say in its manifest which of them have MathML."""
    with ZipFile(file) as book:
        names = set(book.namelist())
        content = {info: book.read(info) for info in book.infolist()}
    with_math = set()
    for info, data in content.items():
        if info.filename.endswith(".xhtml"):
            made = _page(data.decode(), info.filename, names, macros)
            content[info] = made.encode()
            if "<math" in made:
                with_math.add(info.filename)
    with ZipFile(file, "w") as book:
        for info, data in content.items():
            if info.filename.endswith(".opf"):
                data = _manifest(data.decode(), with_math).encode()
            book.writestr(info, data)


def _page(text: str, name: str, names: Collection[str], macros: Macros) -> str:
    def formula(found: re.Match[str]) -> str:
        tex = html.unescape(found[3]).strip()
        display = "block" if tex.startswith(r"\[") else "inline"
        tex = expand(tex[2:-2].strip(), macros).replace("{aligned}", "{align*}")  # by the name that convert knows
        return found[1] + convert(tex, display=display) + found[4]

    def link(found: re.Match[str]) -> str:
        address = urlsplit(html.unescape(found[1]))
        path = posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(address.path)))
        if address.scheme or address.netloc or path in names:
            return found[0]
        return "" if path.endswith(".csv") else found[2] + (found[3] or "")

    return _LINK.sub(link, _TITLE_OF_OPEN_CELL.sub("", _FORMULA.sub(formula, text)))


def _manifest(text: str, with_math: Collection[str]) -> str:
    def item(found: re.Match[str]) -> str:
        return found[0].replace("<item ", '<item properties="mathml" ') if found[1] in with_math else found[0]

    return re.sub(r'<item (?![^>]*properties=)[^>]*href="([^"]*)"[^>]*>', item, text)


def expand(tex: str, macros: Macros) -> str:
    """A formula with what its macros stand for."""
    names = re.compile(r"\\(" + "|".join(macros) + r")(?![A-Za-z])")
    while macros and (found := names.search(tex)):
        given = macros[found[1]]
        body, count = (given, 0) if isinstance(given, str) else (str(given[0]), int(given[1]))
        end = found.end()
        for number in range(1, count + 1):
            argument, end = _argument(tex, end)
            body = body.replace(f"#{number}", argument)
        tex = tex[: found.start()] + body + tex[end:]
    return tex


def _argument(tex: str, start: int) -> tuple[str, int]:
    """What a command at ``start`` takes, and where that ends: a group without its braces, a command or a sign."""
    while tex[start].isspace():
        start += 1
    if tex[start] != "{":
        sign = re.compile(r"\\[A-Za-z]+|\\?.").match(tex, start)
        assert sign
        return sign[0], sign.end()
    depth = 0
    for end in range(start, len(tex)):
        depth += {"{": 1, "}": -1}.get(tex[end], 0) if tex[end - 1] != "\\" else 0
        if not depth:
            return tex[start + 1 : end], end + 1
    raise ValueError(f"a brace in {tex!r} does not close.")
