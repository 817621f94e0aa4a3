"""Do the pages tell the records of ``ci/bench`` as they are?"""

from pathlib import Path

import pytest

from riembn.pages import chapter, timings

ROOT = Path(__file__).resolve().parents[2]


def test_interval_has_ends_only_where_there_are_some() -> None:
    assert timings.interval({"median": 1.066, "low": 1.03, "high": 1.134}) == "1.07 (1.03 to 1.13)"
    assert timings.interval({"median": 1.0, "low": None, "high": None}, digits=1) == "1.0"


@pytest.mark.parametrize("command", ["step", "train"])
def test_machine_and_targets_of_the_committed_records(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    measured = chapter.benchmarks(command, "cpu")
    told = dict(timings.machine(measured["cpu"]).itertuples(index=False))
    where = measured["cpu"]["environment"]
    assert told["versions"].startswith(f"torch {where['torch']}, ")
    assert told["device"] == where["cpu"] and told["commit"].startswith(where["commit"][:12])
    table, given = timings.targets(measured), measured["cpu"]["targets"]
    assert list(table["target"][table["on"] == "cpu"]) == [one["what"] for one in given]
    for bound, one in zip(table["bound"], given, strict=False):
        assert bound.startswith("≤" if one["at_most"] else "≥") and float(bound[2:]) == one["bound"]
