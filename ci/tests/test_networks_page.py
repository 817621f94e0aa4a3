"""The page on networks tells the record of ``ci/bench split`` as it is, and explains the verdicts denied there."""

import csv
import io
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "ci"))

from benchmarks.networks import NETWORKS  # noqa: E402
from website.networks import SOURCES, numbers, summary, tried  # noqa: E402

PATH = "book/benchmarks/split-cpu.json"
CHECK = {
    "invariant": {"of": 150, "tried": 120, "rows": 900, "largest_change": 3.2e-14},
    "rest": {"of": 2, "tried": 2, "smallest_change": 0.02},
    "wrong": {"fc.weight": "in the rest, but the output stays"},
}
ONE = {
    **{"name": "one", "source": "timm", "example": [4, 3, 64, 64], "commit": "0123456789abcdef"},
    **{"weights": 152, "invariant": 150, "granularities": ["2 channels", "4 channels"], "share": 0.987},
    **{"passes": 4, "cpu_seconds": 1.26, "weight_bytes": 20_000_000, "peak_bytes": 90_000_000},
    **{"own_eps_change": 0.13, "check": CHECK},
}
NONE = {
    **{"name": "none", "source": "timm", "example": [4, 9], "commit": "0123456789abcdef"},
    **{"weights": 1, "invariant": 0, "granularities": [], "share": 0.0},
    **{"passes": 3, "cpu_seconds": 0.1, "weight_bytes": 400, "peak_bytes": 1_000_000, "own_eps_change": 0.0},
    "check": {
        "invariant": {"of": 0, "tried": 0, "rows": 0, "largest_change": None},
        "rest": {"of": 1, "tried": 1, "smallest_change": 0.5},
        "wrong": {},
    },
}
LATE = {"name": "late", "source": "timm", "example": [1], "error": "not done in 240 s", "commit": "fedcba9876543210"}
WHERE = {"device": "cpu", "cpu": "A CPU", "threads": 1, "torch": "2.13", "quiet": False}
WHERE |= {"versions": {"torchvision": "0.28", "timm": "1.0"}}


def written(root: Path) -> Path:
    (root / PATH).parent.mkdir(parents=True)
    (root / PATH).write_text(json.dumps({"environment": WHERE, "networks": [ONE, NONE, LATE]}))
    return root


def test_each_network_is_a_line(tmp_path: Path) -> None:
    written_down = tried(written(tmp_path), "timm").translate({0xA0: " ", 0x2011: "-"})  # what no line breaks at
    head, _, *lines, _, below = written_down.splitlines()
    cells = [dict(zip(head.split(" | "), line.split(" | "), strict=True)) for line in lines]
    assert [one["| network"] for one in cells] == ["| `one`", "| `none`<br>4×9", "| `late`<br>1"]
    assert list(cells[0].values())[1:] == [
        *("150 of 152", "2, 4 channels", "98.7 %", "1.3 s", "90 MB (4.5×)", "0.1"),
        *("122 of 152, 1 wrong", "3e-14", "0.02 |"),
    ]
    assert cells[1]["rows span"] == "–" and cells[1]["memory"] == "1 MB" and cells[1]["tried"] == "all"
    assert cells[1]["own ε"] == "0" and cells[1]["largest change"] == "–"
    assert cells[2]["weights"] == "not done in 240 s"
    assert re.findall('href="../_static/(.*?)"', below) == ["data/which-networks/timm.csv", "benchmarks/split-cpu.json"]
    assert "Record of the measurement (split-cpu, A CPU)" in below


def test_numbers_of_a_table_are_those_of_the_record(tmp_path: Path) -> None:
    files = numbers(written(tmp_path))
    assert list(files) == [f"data/which-networks/{name}.csv" for name in SOURCES]
    one, none, late = csv.DictReader(io.StringIO(files["data/which-networks/timm.csv"].decode()))
    assert one.pop("rows span") == "2 channels, 4 channels" and one.pop("example") == "4×3×64×64"
    assert {name: value for name, value in one.items() if name not in ("network", "error")} == {
        **{"weights": "152", "on the sphere": "150", "share": "0.987", "seconds": "1.26", "own ε": "0.13"},
        **{"peak bytes": "90000000", "weight bytes": "20000000", "tried": "122", "wrong": "1"},
        **{"largest change": "3.2e-14", "smallest change": "0.02"},
    }
    assert none["largest change"] == "" and late["error"] == "not done in 240 s" and late["weights"] == ""
    assert numbers(tmp_path / "elsewhere") == {}


def test_summary_counts_what_was_tried_and_says_where(tmp_path: Path) -> None:
    text = summary(written(tmp_path)).translate({0x2011: "-"})
    assert "2 of 3 networks were measured" in text and "153 weights" in text and "123 were tried" in text
    assert "took 3 to 4 passes, 3 in 1 networks" in text
    assert "1 verdict came out wrong" in text and "at most 3e-14" in text and "by 0.02 or more" in text
    assert "at commit 0123456, fedcba9; other work ran beside it" in text
    assert 'href="../_static/benchmarks/split-cpu.json"' in text


def test_committed_record_is_whole_and_denies_no_verdict() -> None:
    record = json.loads((ROOT / PATH).read_text(encoding="utf-8"))
    networks = {one["name"]: one for one in record["networks"]}
    assert list(networks) == list(NETWORKS)
    assert {one["source"] for one in networks.values()} == set(SOURCES)
    assert {name: one["error"] for name, one in networks.items() if "error" in one} == {}
    assert {name: one["check"]["wrong"] for name, one in networks.items() if one["check"]["wrong"]} == {}
