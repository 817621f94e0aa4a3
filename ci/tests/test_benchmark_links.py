"""Whether the pages that are drawn from benchmarks lead to the records, and the site has these as they are."""

import io
import json
import re
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "ci"))

from website import networks, stage  # noqa: E402
from website.contents import Page  # noqa: E402
from website.numbers import linked  # noqa: E402

LINK = re.compile(r'href="\.\./_static/(benchmarks/[^"]+)"')


@pytest.fixture(scope="module")
def staged() -> dict[str, bytes]:
    return stage._records(ROOT, "laptop", set())


def shown(page: Page, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The figures and tables of a chapter as a page has them, in their order."""
    v4, outputs = nbformat.v4, []

    def display(what: dict[str, object], raw: bool) -> None:
        outputs.append(v4.new_output("display_data", data=what))

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr("myst_nb.glue", lambda name, text, display: None)
    monkeypatch.chdir(ROOT)
    names: dict[str, object] = {}
    for cell in nbformat.read(page.source, as_version=4).cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
    linked(ROOT, page, v4.new_notebook(cells=[v4.new_code_cell("", outputs=outputs)]))
    return [out.data["text/html"] for out in outputs]


def records(drawn: Iterable[str], staged: dict[str, bytes]) -> list[list[str]]:
    """Which records each of them leads to; they are files of the site, with what git keeps in them."""
    found = [LINK.findall(html) for html in drawn]
    for name in {name for names in found for name in names}:
        assert json.loads(staged[f"_static/{name}"]) == json.loads((ROOT / "book" / name).read_text(encoding="utf-8"))
    return [[Path(name).stem for name in names] for names in found]


@pytest.mark.parametrize(
    ("chapter", "drawn_from"),
    [
        ("14-step", [*[["step-cpu"]] * 7, *[["step-nvidia-h200"]] * 2, ["step-cpu", "step-nvidia-h200"]]),
        (
            "15-training",
            [*[["train-cpu"]] * 5, *[["train-nvidia-h200"]] * 2, ["train-cpu", "train-nvidia-h200"]],
        ),
    ],
)
def test_each_figure_and_table_leads_to_what_it_is_drawn_from(
    chapter: str, drawn_from: list[list[str]], staged: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = shown(Page(f"book/{chapter}", ROOT / "book" / f"{chapter}.ipynb"), monkeypatch)
    assert records(drawn, staged) == drawn_from


def test_each_table_of_networks_leads_to_its_numbers_and_its_record(staged: dict[str, bytes]) -> None:
    tables = [networks.tried(ROOT, source) for source in networks.SOURCES]
    assert records([networks.summary(ROOT), *tables], staged) == [["split-cpu"]] * (1 + len(networks.SOURCES))
    for table in tables:
        (file,) = re.findall(r'href="\.\./(_static/data/[^"]+)"', table)
        numbers = staged[file].decode().splitlines()
        assert len(numbers) == 1 + len([line for line in table.splitlines()[2:] if line.startswith("| ")])


def test_archive_has_every_record_that_a_page_leads_to(staged: dict[str, bytes]) -> None:
    with zipfile.ZipFile(io.BytesIO(staged["_static/records.zip"])) as archive:
        about = archive.read("riembn-records/README.md").decode()
        for file in (ROOT / "book" / "benchmarks").glob("*.json"):
            assert archive.read(f"riembn-records/benchmarks/{file.name}") == file.read_bytes()
            assert f"_static/benchmarks/{file.name}" in staged
            assert f"`{file.stem.partition('-')[0]}`" in about
