"""Results in the text of a chapter come from its runs: a typed one is refused."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))

# What is no result: code, formulas, numbers that the chapter hands over (glue) and comments.
NOT_TEXT = re.compile(r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|<!--.*?-->", re.DOTALL)
RESULT = re.compile(
    r"(?<![\w.,/-])[−+-]?\d+(?:[.,]\d+)*\s*(?:%|percentage points?|ms\b|µs\b|s\b|MiB\b|GB/s|images/s|×)"
    r"|(?<![\w.,/-])[−+-]?\d+\.\d+\s*points?\b"  # of error: 1,000 points may be points of a sphere
)
LEVELS = {"95 %", "90 %", "80 %", "100 %", "10 %", "5 %", "1 %"}  # of intervals, tests and instabilities: settings


def typed_results(text: str) -> list[str]:
    """Numbers with the unit of a result, in paragraphs that do not cite whose they are."""
    found = []
    for paragraph in re.split(r"\n\s*\n", NOT_TEXT.sub(" ", text)):
        if "{cite" not in paragraph:
            found += [hit for hit in RESULT.findall(paragraph) if re.sub(r"\s+", " ", hit) not in LEVELS]
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_results_in_the_text_come_from_the_runs(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        if cell["cell_type"] == "markdown":
            typed = typed_results("".join(cell["source"]))
            assert not typed, f"{cell['id']}: {typed}: hand it over with pages.say, or cite whose result it is"


@pytest.mark.parametrize(
    ("text", "typed"),
    [
        ("SGD-G ends at 13.70 % test error.", ["13.70 %"]),
        ("It gains −1.2 points\nand takes 3.4 ms.", ["−1.2 points", "3.4 ms"]),
        ("Twice as fast: 2.1× in the table.", ["2.1×"]),
        ("Error {glue:text}`a` with its 95 % interval, at $0.1$ %.", []),
        ("{cite:t}`someone` report 94.92 %.", []),
        ("`lr=0.2 s` in\n\n```\n3 ms\n```", []),
        ("Layers 3 to 5, seeds 0 and 1, SGD-G's 12 epochs.", []),
    ],
)
def test_a_typed_result_is_told_from_a_setting(text: str, typed: list[str]) -> None:
    assert typed_results(text) == typed
