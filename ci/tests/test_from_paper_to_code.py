"""Does the page "from paper to code" show every line of the reference, and no line that is gone?"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "book" / "from-paper-to-code.md"
# ci/book renders the copy of the page in _build/book, from where the included paths start.
STAGED = ROOT / "_build" / "book"
SHOWN = ("clip", "sgd_g", "adam_g", "psi_sgd", "orthogonality", "orthogonality_grad")


def included() -> Iterator[tuple[Path, dict[str, str]]]:
    for path, body in re.findall(r"```\{literalinclude\} (\S+)\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL):
        yield (STAGED / path).resolve(), dict(re.findall(r"^:([\w-]+): (.*)$", body, re.MULTILINE))


def function(file: Path, name: str) -> tuple[list[str], int]:
    """The lines of a function, and the place among them where its code begins behind the docstring."""
    text = file.read_text("utf-8")
    (node,) = [x for x in ast.parse(text).body if isinstance(x, ast.FunctionDef) and x.name == name]
    assert node.end_lineno is not None
    return text.splitlines()[node.lineno - 1 : node.end_lineno], node.body[1].lineno - node.lineno


def lines(file: Path, options: dict[str, str]) -> range:
    """Where the included lines stand in their function; as Sphinx, each text means the first line that has it."""
    body, _ = function(file, options["pyobject"])
    found = {key: [k for k, line in enumerate(body) if options[key] in line] for key in options if "-at" in key}
    for key, places in found.items():
        assert len(places) == 1, f"{options['pyobject']}: {key} {options[key]!r} is on {len(places)} lines"
    end = found["end-at"][0] if "end-at" in found else len(body) - 1
    assert found["start-at"][0] <= end
    return range(found["start-at"][0], end + 1)


INCLUDED = list(included())


@pytest.mark.parametrize(("file", "options"), INCLUDED, ids=lambda x: x.name if isinstance(x, Path) else "")
def test_included_lines_are_code_that_exists(file: Path, options: dict[str, str]) -> None:
    body, begin = function(file, options["pyobject"])
    shown = lines(file, options)
    assert shown.start >= begin, "part of the docstring"
    ast.parse("\n".join(line[4:] for line in body[shown.start : shown.stop]).replace("return", "_ =", 1))


@pytest.mark.parametrize("name", SHOWN)
def test_every_line_of_the_reference_is_shown_once(name: str) -> None:
    file = ROOT / "riembn" / "optim" / "reference.py"
    body, begin = function(file, name)
    of_it = [options for at, options in INCLUDED if at == file and options["pyobject"] == name]
    shown = [place for options in of_it for place in lines(file, options)]
    assert sorted(shown) == list(range(begin, len(body)))


def test_names_of_the_page_exist() -> None:
    text = (ROOT / "riembn" / "optim" / "reference.py").read_text("utf-8")
    for quoted in re.findall(r"`((?:float\()?w [@+] [^`]*)`", PAGE.read_text("utf-8")):
        assert quoted in text, quoted
