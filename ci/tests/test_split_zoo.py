"""Split gives the answers worked out by hand, and each of them stands up to an independent check."""

import copy
import fnmatch
import time

import pytest
import torch
from torch import Tensor, nn
from zoo.answers import CASES, Case

from riembn.geometry.rows import to_rows
from riembn.invariance import Split, split


def answered(result: Split) -> dict[str, str]:
    return {
        v.name: v.granularity if v.invariant else f"no: {v.reason}"
        for v in result.verdicts
        if v.parameter.dim() > 1
    }


def expected(case: Case, name: str) -> str:
    return next(answer for pattern, answer in case.answer.items() if fnmatch.fnmatchcase(name, pattern))


def radial_parts(model: nn.Module, example: Tensor, groups: list[dict]) -> list[Tensor]:
    """⟨w, ∂L/∂w⟩ over |w| |∂L/∂w| of every weight vector, computed with nothing of the package but `to_rows`.

    A bias that belongs to its weight adds its own products to those of the vectors.
    """
    twin = copy.deepcopy(model).double().train()
    for module in twin.modules():
        if hasattr(module, "eps"):
            module.eps = 1e-20  # torch asks for a positive one
        if "drop" in type(module).__name__.lower():
            module.eval()
    torch.manual_seed(2)
    for parameter in twin.parameters():
        if parameter.dim() == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    output = twin(example.double() if example.is_floating_point() else example)
    (output * torch.randn_like(output)).sum().backward()
    twins = dict(zip(map(id, model.parameters()), twin.parameters(), strict=True))
    parts = []
    for group in groups:
        layout = {key: value for key, value in group.items() if key not in ("params", "joint")}
        step = 2 if group.get("joint") else 1
        for i in range(0, len(group["params"]), step):
            weight, *bias = (twins[id(parameter)] for parameter in group["params"][i : i + step])
            w, g = (to_rows(t.contiguous(), **layout) for t in (weight, weight.grad))
            for b in bias:
                w, g = (torch.cat([r, t.view(len(r), -1)], 1) for r, t in ((w, b), (g, b.grad)))
            parts.append((w * g).sum(1) / (w.norm(dim=1) * g.norm(dim=1) + 1e-12))
    return [part.detach() for part in parts]


@pytest.mark.parametrize("case", [case.param for case in CASES])
def test_answer_is_the_one_worked_out_by_hand(case: Case) -> None:
    torch.manual_seed(0)
    model, example = case.build(), case.example()
    result = split(model, example)
    found = answered(result)
    wrong = {n: (a, expected(case, n)) for n, a in found.items() if not a.startswith(expected(case, n))}
    assert not wrong
    assert {v.row_dim for v in result.verdicts if "up.weight" in v.name} <= {0, 1}
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
