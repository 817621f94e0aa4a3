"""The sums of an epoch: the same whenever they are asked for, and through a checkpoint."""

import functools
import math
import operator

import torch
from hypothesis import given
from hypothesis import strategies as st

from riembn.training.sums import Sums

LOSSES = st.lists(st.floats(width=32), min_size=1, max_size=20)


def added(sums: Sums, losses: list[float], first: int = 0) -> Sums:
    for step, loss in enumerate(losses, start=first):
        sums.add(torch.tensor(loss), torch.tensor(step), step)
    return sums


@given(LOSSES, st.integers(0, 20))
def test_reading_in_between_or_a_checkpoint_changes_no_bit(losses, cut):
    whole = added(Sums(), losses).read()
    begun = added(Sums(), losses[:cut])
    gone_on = added(Sums.of(begun.state()), losses[cut:], first=len(losses[:cut])).read()
    assert repr(gone_on) == repr(whole)  # as texts, in which NaN equals itself
    bad = [step for step, loss in enumerate(losses) if not math.isfinite(loss)]
    assert whole.bad == (bad[0] if bad else -1)
    assert whole.wrong == sum(range(len(losses)))
    if not bad:
        assert whole.loss == functools.reduce(
            operator.add, losses, 0.0
        )  # `sum` rounds less from Python 3.12 on


def test_what_another_device_counted_is_not_counted_twice():
    state = added(Sums(steps=3, seconds=2.0), [1.0, 2.0]).state()
    assert Sums.of(state, counted=False).state() == {**state, "loss": 0.0, "wrong": 0}
