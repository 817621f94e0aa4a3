"""A Split can be looked up, cut down, printed at any size, and kept in a file."""

import json
import logging
import pickle

import pytest
import torch
from torch import Tensor, nn

from riembn.invariance import Split, split
from riembn.models import vgg, wide_resnet


def batch(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Linear(4, 6), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
    )


@pytest.fixture(scope="module")
def found(network: nn.Module) -> Split:
    return split(network, batch(8, 4))


def test_split_is_a_mapping_of_names(network: nn.Module, found: Split) -> None:
    named = dict(network.named_parameters())
    assert list(found) == list(named) and len(found) == len(named)
    assert all(found[name].parameter is p for name, p in named.items())
    assert "3.weight" in found and found["3.weight"].granularity == "channel" and found.get("no") is None
    assert [e.name for e in found.values()] == [name for name, _ in found.items()] == list(named)
    with pytest.raises(KeyError, match="nothing"):
        found["nothing"]


def test_repr_is_one_short_line(found: Split) -> None:
    assert repr(found) == (
        '<Split: rule "invariant": 3 of 10 parameters, 12 weight rows, 60.0 % of 110 numbers>'
    )
    assert repr(found["3.weight"]) == "<3.weight 6×6: channel, in front of BatchNorm>"


def test_share_counts_numbers_and_is_zero_of_nothing(found: Split) -> None:
    assert found.share == 66 / 110
    assert found.filter("nothing").share == 0.0
    assert found.filter(lambda entry: entry.invariant).share == 1.0


def test_filter_takes_patterns_and_functions_and_keeps_pairs_together(found: Split) -> None:
    assert list(found.filter("3.*")) == ["3.weight", "3.bias"]
    assert list(found.filter(lambda e: e.rows > 0)) == ["0.weight", "0.bias", "3.weight"]
    assert list(found.filter("0.weight")) == list(found.filter("0.bias")) == ["0.weight", "0.bias"]
    groups = found.filter("0.*").groups()
    assert len(groups) == 1 and groups[0]["joint"] and len(groups[0]["params"]) == 2
    assert found.filter("none").groups() == [] and "0 of 0 parameters" in repr(found.filter("none"))


def test_many_parameters_are_folded() -> None:
    torch.manual_seed(0)
    result = split(wide_resnet(16, 1), batch(4, 3, 16, 16))
    summary = result.summary().splitlines()
    assert len(summary) < 16 and len(result.table().splitlines()) == len(result) + 2
    lines = [line for line in summary if line.startswith("groups.*.*.conv*.weight (×6)")]
    assert len(lines) == 2 and all("16×16×3×3 … 64×64×3×3" in line for line in lines)
    assert " channel " in lines[0] and "feeds a sum with another path" in lines[1]
    pattern = lines[0].split()[0]
    assert {"groups.0.0.conv1.weight", "groups.2.1.conv2.weight"} <= set(result.filter(pattern))


def test_printing_folds_what_is_long(found: Split) -> None:
    assert found.table() in str(found) and found.summary() not in str(found)
    layers = [m for _ in range(30) for m in (nn.Linear(4, 4, bias=False), nn.LayerNorm(4))]
    long = split(nn.Sequential(*layers, nn.Linear(4, 2)), batch(8, 4))
    assert len(long) == 92 and long.summary() in str(long)
    assert len(str(long).splitlines()) < 12


def test_saved_and_read_again(network: nn.Module, found: Split) -> None:
    again = Split.from_dict(json.loads(json.dumps(found.to_dict())), network)
    assert str(again) == str(found)
    assert all(again[name].parameter is found[name].parameter for name in found)
    assert [g["row_dim"] for g in again.groups()] == [g["row_dim"] for g in found.groups()]
    other = nn.Sequential(nn.Linear(4, 5))
    with pytest.raises(ValueError, match=r"Sequential has no parameter '0.weight' of shape \(6, 4\)"):
        Split.from_dict(found.to_dict(), other)


def test_pickled(found: Split) -> None:
    again = pickle.loads(pickle.dumps(found))
    assert str(again) == str(found) and torch.equal(again["0.weight"].parameter, found["0.weight"].parameter)


def test_an_eps_that_costs_much_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """At a variance of 0.003, eps = 0.001 is a fourth of what is divided by."""

    def result(eps: float) -> Split:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, eps=eps), nn.Linear(6, 2))
        with torch.no_grad():
            model[0].weight.mul_(0.1)
        return split(model, batch(64, 4))

    with caplog.at_level(logging.WARNING, logger="riembn"):
        quiet = result(1e-5)
    assert not caplog.records and "eps is not small" not in str(quiet)
    loud = result(1e-3)
    assert loud.own_eps_change is not None and loud.own_eps_change > 0.1
    assert "eps is not small beside the variances" in str(loud) and "'0.weight'" in loud.caution()
    assert [r.getMessage() for r in caplog.records] == [f"split: {loud.caution()}."]


def test_the_papers_rule_has_the_same_form() -> None:
    result = split(vgg(11, width=0.1), None, rule="paper")
    assert result.change is None and result.caution() == "" and "rule \"paper\"" in repr(result)
    assert Split.from_dict(result.to_dict(), vgg(11, width=0.1)).rule == "paper"
