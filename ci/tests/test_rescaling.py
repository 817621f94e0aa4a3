"""Brute force finds a split's faults: a verdict that is wrong, rows that are too coarse."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.rescaling import check  # noqa: E402

from riembn.geometry import Layout  # noqa: E402
from riembn.invariance import split  # noqa: E402


class Several(nn.Module):
    """A weight of each kind: rows of a channel, transposed and in groups; of a group with its bias; a whole tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.batch_norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, eps=0.1)
        self.up, self.up_norm = nn.ConvTranspose2d(8, 12, 2, groups=2, bias=False), nn.BatchNorm2d(12)
        self.groups, self.group_norm = nn.Conv2d(12, 8, 3), nn.GroupNorm(2, 8, eps=0.1)
        self.whole, self.layer_norm = nn.Linear(8, 6), nn.LayerNorm(6)
        self.mixed = nn.Linear(6, 6)
        self.last = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up_norm(self.up(self.batch_norm(self.rows(x)).relu()))
        x = self.group_norm(self.groups(x)).relu().mean((2, 3))
        x = self.layer_norm(self.whole(x))
        return self.last((x + self.mixed(x)).tanh())


torch.manual_seed(0)
MODEL, EXAMPLE = Several(), torch.randn(6, 3, 8, 8)
ENTRIES = dict(split(MODEL, EXAMPLE))


def wrong(**changes: dict) -> dict[str, str]:
    entries = {name: replace(e, **changes.get(name.partition(".")[0], {})) for name, e in ENTRIES.items()}
    return check(MODEL, EXAMPLE, list(entries.values()))["wrong"]


def test_right_verdicts_stand() -> None:
    assert [e.granularity for e in ENTRIES.values() if e.rows] == [
        *("channel", "channel", "4 channels + bias", "whole tensor + bias")
    ]
    found = check(MODEL, EXAMPLE, list(ENTRIES.values()))
    assert found["wrong"] == {}
    assert found["invariant"]["largest_change"] < 1e-12 and found["invariant"]["finer_smallest"] > 1e-3
    assert found["invariant"] | {"of": 4, "tried": 4, "single_rows": 4} == found["invariant"]
    assert found["rest"]["smallest_change"] > 1e-3 and found["rest"]["of"] == 2


def test_false_positive_is_found() -> None:
    found = wrong(mixed={"invariant": True, "rows": 6, "layout": Layout()})
    assert found.keys() == {"mixed.weight"} and "the output moves" in found["mixed.weight"]


def test_rows_that_are_too_fine_or_without_their_bias_are_found() -> None:
    assert wrong(groups={"layout": Layout(), "rows": 8, "partner": ""}).keys() == {"groups.weight"}
    assert wrong(whole={"partner": ""}).keys() == {"whole.weight"}


def test_rows_that_are_too_coarse_are_found() -> None:
    found = wrong(rows={"layout": Layout(0, 1, 4), "rows": 2})
    assert found == {"rows.weight": "its channels are invariant one by one"}


def test_false_negative_is_found() -> None:
    for name in ("rows", "up", "groups", "whole"):
        found = wrong(**{name: {"invariant": False, "reason": "feeds a sum with another path"}})
        assert {key.partition(".")[0] for key in found} == {name} and "stays" in found[f"{name}.weight"]


def test_nothing_is_told_of_a_weight_without_effect() -> None:
    class Faint(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.side = nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(6, 4, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.first(x)) + 1e-14 * self.side(x)

    model, example = Faint(), torch.randn(16, 6)
    entries = dict(split(model, example))
    assert entries["side.weight"].reason.startswith("unused")
    entries["side.weight"] = replace(entries["side.weight"], reason="reaches the output without a normalization")
    found = check(model, example, list(entries.values()))
    assert found["wrong"] == {} and found["rest"] == {"of": 1, "tried": 1, "silent": 1, "smallest_change": None}


def test_padding_is_normalized_to_zero_as_torch_does() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.key = nn.Linear(6, 4, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.normalize(self.key(nn.functional.pad(x, (0, 0, 0, 2))), dim=-1)

    model, example = Padded(), torch.randn(2, 3, 6)
    found = check(model, example, list(split(model, example).values()))
    assert found["wrong"] == {} and found["invariant"]["of"] == 1


def test_weight_that_counts_is_not_unused() -> None:
    assert wrong(last={"reason": "unused: the output does not depend on it"}).keys() == {"last.weight"}
