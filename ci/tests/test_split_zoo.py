"""Split gives the answers worked out by hand, and each of them stands up to an independent check."""

import fnmatch
import time

import pytest
import torch
from zoo.answers import CASES, Case
from zoo.radial import radial_parts

from riembn.invariance import Split, split


def answered(result: Split) -> dict[str, str]:
    return {
        v.name: v.granularity if v.invariant else f"no: {v.reason}"
        for v in result.entries
        if v.parameter.dim() > 1
    }


def expected(case: Case, name: str) -> str:
    return next(answer for pattern, answer in case.answer.items() if fnmatch.fnmatchcase(name, pattern))


@pytest.mark.parametrize("case", [case.param for case in CASES])
def test_answer_is_the_one_worked_out_by_hand(case: Case) -> None:
    torch.manual_seed(0)
    model, example = case.build(), case.example()
    result = split(model, example)
    found = answered(result)
    wrong = {n: (a, expected(case, n)) for n, a in found.items() if not a.startswith(expected(case, n))}
    assert not wrong
    assert {v.layout.row_dim for v in result.entries if "up.weight" in v.name} <= {0, 1}
    if result.invariant:
        assert result.change is not None and result.change < 1e-10
        radial = torch.cat(radial_parts(model, example, result.groups()))
        assert float(radial.abs().max()) < 1e-9


@pytest.mark.slow
def test_resnet50_takes_less_than_twenty_seconds() -> None:
    """Of processor time, so that a busy machine does not fail it."""
    torch.manual_seed(0)
    case = next(case for case in CASES if case.name == "resnet50")
    model, example, start = case.build(), case.example(), time.process_time()
    split(model, example)
    assert time.process_time() - start < 20
