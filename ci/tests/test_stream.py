"""The order of images is a function of seed and step, and wastes none."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from riembn.training.batch_order import balanced_subset, epoch_batches, seed_of, steps_before


def epochs_of(count, **options):
    return [epoch_batches(epoch, **options) for epoch in range(count)]


@given(
    size=st.integers(2, 60), batch_size=st.integers(2, 60), seed=st.integers(0, 5), epochs=st.integers(1, 6)
)
def test_every_pass_shows_every_image_once(size, batch_size, seed, epochs):
    batch_size = min(batch_size, size)
    found = epochs_of(epochs, size=size, batch_size=batch_size, seed=seed)
    stream = torch.cat(found).flatten()
    assert len(stream) == epochs * size // batch_size * batch_size
    for start in range(0, len(stream) - size + 1, size):
        assert sorted(stream[start : start + size].tolist()) == list(range(size))
    assert sum(len(batches) for batches in found) == steps_before(epochs, size, batch_size)


def test_paper_runs_have_the_releases_number_of_steps():
    assert steps_before(200, 50_000, 128) == 78_125
    assert steps_before(160, 604_388, 128) == 755_485
    # Rates drop where the release's step index passes 23437 and 283306.
    assert steps_before(60, 50_000, 128) == 23_437
    assert steps_before(60, 604_388, 128) == 283_306


def test_order_depends_on_seed_and_epoch():
    options = {"size": 40, "batch_size": 8}
    first = epoch_batches(0, seed=0, **options)
    assert torch.equal(first, epoch_batches(0, seed=0, **options))
    assert not torch.equal(first, epoch_batches(0, seed=1, **options))
    assert not torch.equal(first, epoch_batches(1, seed=0, **options))


def test_seeds_of_different_purposes_and_numbers_differ():
    seeds = {seed_of(p, s, e) for p in ("crops", "dropout") for s in range(30) for e in range(30)}
    assert len(seeds) == 2 * 30 * 30


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=80), share=st.floats(0, 1))
def test_subset_is_balanced_nested_and_fixed(labels, share):
    labels = torch.tensor(labels)
    count = max(1, int(share * len(labels)))
    chosen = balanced_subset(labels, count)
    assert len(set(chosen.tolist())) == count
    assert torch.equal(chosen, balanced_subset(labels, count))
    taken = torch.bincount(labels[chosen], minlength=5)
    there = torch.bincount(labels, minlength=5)
    # A class has fewer than the largest by more than one only if it has no more images.
    assert all(taken[c] >= taken.max() - 1 or taken[c] == there[c] for c in range(5))


def test_larger_subset_contains_the_smaller():
    labels = torch.randint(10, (500,), generator=torch.Generator().manual_seed(1))
    small, large = balanced_subset(labels, 50), balanced_subset(labels, 200)
    assert torch.equal(small, large[:50])
    assert torch.bincount(labels[small]).tolist() == [5] * 10


def test_subset_larger_than_the_set_is_refused():
    with pytest.raises(ValueError, match="train_size=6 is not accepted; the training set has 5 images"):
        balanced_subset(torch.zeros(5, dtype=torch.int64), 6)
