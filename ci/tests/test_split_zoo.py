"""Split gives the answers worked out by hand, and each of them stands up to an independent check."""

import fnmatch
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
from zoo.answers import CASES, Case
from zoo.radial import radial_parts

from riembn.invariance import Split, split
from riembn.invariance.trial import LIMIT
from riembn.invariance.twin import Twin


def answered(result: Split) -> dict[str, str]:
    return {
        v.name: v.granularity if v.invariant else f"no: {v.reason}"
        for v in result.entries
        if v.parameter.dim() > 1
    }


def expected(case: Case, name: str) -> str:
    return next(answer for pattern, answer in case.answer.items() if fnmatch.fnmatchcase(name, pattern))


@pytest.mark.parametrize("case", [case.param for case in CASES])
def test_answer_is_the_one_worked_out_by_hand(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []

    def counted(*args: Any, **options: Any) -> Any:
        passes.append(1)
        return run(*args, **options)

    run = Twin.run
    monkeypatch.setattr(Twin, "run", counted)
    torch.manual_seed(0)
    model, example = case.build(), case.example()
    result = split(model, example)
    assert 3 <= len(passes) <= LIMIT
    found = answered(result)
    wrong = {n: (a, expected(case, n)) for n, a in found.items() if not a.startswith(expected(case, n))}
    assert not wrong
    assert {v.layout.row_dim for v in result.entries if "up.weight" in v.name} <= {0, 1}
    if result.invariant:
        assert result.change is not None and result.change < 1e-10
        radial = torch.cat(radial_parts(model, example, result.groups()))
        # The check keeps an eps of 1e-20, which channels that hardly vary feel; others are below 1e-12.
        assert float(radial.abs().max()) < 1e-7


def test_takes_at_most_five_times_the_memory_of_the_weights() -> None:
    """In a process of its own, whose peak is its own; the example is small beside the weights."""
    code = """
import re, torch
from pathlib import Path
from torch import nn
from riembn.invariance import split
def peak(): return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
def network(n):
    layers = [m for _ in range(4) for m in (nn.Linear(n, n), nn.BatchNorm1d(n), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(n, 2))
split(network(8), torch.randn(8, 8))
model = network(2000)
before = peak()
split(model, torch.randn(8, 2000))
print((peak() - before) / sum(p.numel() * p.element_size() for p in model.parameters()))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert 1.0 < float(done.stdout) < 5.0


@pytest.mark.slow
def test_resnet50_takes_less_than_twenty_seconds() -> None:
    """Of processor time, so that a busy machine does not fail it."""
    torch.manual_seed(0)
    case = next(case for case in CASES if case.name == "resnet50")
    model, example, start = case.build(), case.example(), time.process_time()
    split(model, example)
    assert time.process_time() - start < 20
