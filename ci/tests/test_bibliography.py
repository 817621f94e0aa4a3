"""Is every work of the bibliography cited, and every citation and glossary term there?"""

import json
import re
from pathlib import Path

BOOK = Path(__file__).resolve().parents[2] / "book"
CELLS = [cell for page in sorted(BOOK.glob("*.ipynb")) for cell in json.loads(page.read_text("utf-8"))["cells"]]
TEXT = "\n".join(
    [page.read_text("utf-8") for page in sorted(BOOK.glob("*.md"))] + ["".join(cell["source"]) for cell in CELLS]
)


def test_what_is_cited_is_listed_and_what_is_listed_is_cited() -> None:
    listed = re.findall(r"^@\w+\{(.+),$", (BOOK / "references.bib").read_text("utf-8"), re.MULTILINE)
    cited = {key.strip() for keys in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", TEXT) for key in keys.split(",")}
    assert len(listed) == len(set(listed))
    assert cited == set(listed)


def test_terms_are_in_the_glossary() -> None:
    pages = re.findall(r"```\{glossary\}\n(.*?)```", (BOOK / "glossary.md").read_text("utf-8"), re.DOTALL)
    terms = {line for page in pages for line in page.splitlines() if line and not line.startswith(" ")}
    used = re.findall(r"\{term\}`(?:[^`<]*<)?([^`>]+)>?`", TEXT.replace("\n", " "))
    assert {term.lower() for term in used} <= {term.lower() for term in terms}
