"""Which images make up the batch of a step?

Batches run across epoch borders, as in the papers' release: the training set is shuffled anew for each pass,
the passes are joined to one long stream, and step s takes the images s*B to (s+1)*B. Nothing is left over
and no batch is short. Everything is a function of seed and step, so that a run needs no state to be resumed
and all methods see the same images in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["balanced_subset", "batches", "seed_of", "steps_before"]


def steps_before(epoch: int, size: int, batch_size: int) -> int:
    """The number of steps taken before an epoch (counted from 0) starts."""
    return epoch * size // batch_size


def batches(epoch: int, *, size: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """The indices of each batch of an epoch (counted from 0), shape ``(batch_size,)``, on the CPU."""
    first = steps_before(epoch, size, batch_size) * batch_size
    last = steps_before(epoch + 1, size, batch_size) * batch_size
    passes = range(first // size, -(-last // size))
    stream = torch.cat([_shuffled(size, seed, number) for number in passes])
    offset = passes.start * size
    for start in range(first - offset, last - offset, batch_size):
        yield stream[start : start + batch_size]


def balanced_subset(labels: Tensor, count: int) -> Tensor:
    """Indices of ``count`` examples, equally many a class up to one, the same on every call.

    A larger subset contains every smaller one.
    """
    if not 1 <= count <= len(labels):
        raise ValueError(f"train_size={count} is not accepted; the training set has {len(labels)} images.")
    order = _shuffled(len(labels), 0, 0)
    shuffled = labels.cpu()[order]
    # Which occurrence of its class each example is: taking all first ones, then all second ones, balances.
    occurrence = torch.empty_like(shuffled)
    for label in shuffled.unique():
        members = shuffled == label
        occurrence[members] = torch.arange(int(members.sum()))
    return order[torch.argsort(occurrence, stable=True)[:count]]


def seed_of(seed: int, epoch: int) -> int:
    """A seed for what is drawn during an epoch: distinct for every pair of run seed and epoch."""
    # Cantor's pairing keeps small seeds small and never meets itself, unlike seed + epoch.
    return (seed + epoch) * (seed + epoch + 1) // 2 + epoch


def _shuffled(size: int, seed: int, number: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed_of(seed, number)))
