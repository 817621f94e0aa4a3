"""A chapter whose runs are all recorded shows them: cells that wait for a block run on made-up records of it."""

import ast
import json
import math
from pathlib import Path

import numpy
import pandas
import pytest
from pretended import Pretended

import riembn
from riembn import evidence, pages
from riembn.evidence.designs import DESIGNS
from riembn.experiment.store import tidy
from riembn.pages import chapter as pages_chapter

BOOK = Path(__file__).resolve().parents[2] / "book"
# The cells of each chapter that show a block, and how many figures and verdicts they have to show.
CELLS = {
    "08-decay": (["verdict", "verdict-table"], 0, 0),
    "09-clipping": (["clipping-05", "clipping-05-other"], 3, 2),
    "10-alpha": (["alpha-09", "alpha-09-other"], 2, 1),
    "11-plateau": (["plateau-09"], 2, 2),
    "12-table": (
        ["table-12", "table-14", "table-split-runs", "table-angle-run", "table-color-runs", "table-decay",
         "table-decay-shown", "table-by-angle-drawn", "table-by-angle-shown", "table-size-runs", "table-yi-runs"], 8, 1
    ),
    "13-relatives": (
        ["study", "compared", "decay-tuned", "orthogonal-steps", "orthogonal-lengths",
         "orthogonal-color", "spread-drawn", "even-thresholds", "even-color"], 7, 3
    ),
}


@pytest.mark.parametrize("chapter", CELLS)
def test_cells_that_wait_for_a_block_show_it(chapter, monkeypatch):
    texts, glued, store = [], {}, Pretended()

    def display(what, raw=False):
        texts.append(what.get("text/html", "") if raw else what.data)

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr("myst_nb.glue", lambda name, text, display: glued.update({name: text}))
    monkeypatch.setattr(riembn, "Store", lambda path: store)
    monkeypatch.chdir(BOOK.parent)
    known = {
        "riembn": riembn, "evidence": evidence, "pages": pages, "chapter": pages_chapter, "DESIGNS": DESIGNS,
        "math": math, "np": numpy, "pandas": pandas, "stats": evidence.stats, "profile": "laptop", "store": store,
        "Store": riembn.Store, "tidy": tidy,
    }  # fmt: skip
    notebook = json.loads((BOOK / f"{chapter}.ipynb").read_text(encoding="utf-8"))
    cells = {cell["id"]: "".join(cell["source"]) for cell in notebook["cells"]}
    ids, figures, verdicts = CELLS[chapter]
    for one in ids:
        exec(compile(ast.parse(cells[one]), f"{chapter}, {one}", "exec"), known)
    page = "\n".join(texts)
    assert "Not run yet" not in page and "none yet" not in " ".join(glued.values())
    assert page.count("<figure") == figures and page.count("**Verdict") == verdicts
    assert page.count("<table") >= 1


def test_no_chapter_waits_for_a_block_unseen():
    for path in BOOK.glob("*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code" and any(w in "".join(cell["source"]) for w in (".outcome(", ".awaited(")):
                assert cell["id"] in CELLS[path.stem][0]
