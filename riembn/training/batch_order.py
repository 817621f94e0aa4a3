"""The images that make up the batch of each step.

Batches run across epoch borders, as in the papers' release: the training set is shuffled anew for each pass,
the passes are joined to one long stream, and step s takes the images s*B to (s+1)*B. Nothing is left over
and no batch is short. Everything is a function of seed and step, so that a run needs no state to be resumed
and all methods see the same images in the same order.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def steps_before(epoch: int, size: int, batch_size: int) -> int:
    """The number of steps taken before an epoch (counted from 0) starts."""
    return epoch * size // batch_size


def epoch_batches(epoch: int, *, size: int, batch_size: int, seed: int) -> Tensor:
    """Which images the steps of an epoch (counted from 0) see: indices, shape ``(steps, batch_size)``."""
    first = steps_before(epoch, size, batch_size) * batch_size
    last = steps_before(epoch + 1, size, batch_size) * batch_size
    passes = range(first // size, -(-last // size))
    stream = torch.cat([_shuffled(size, seed, number) for number in passes])
    offset = passes.start * size
    return stream[first - offset : last - offset].view(-1, batch_size)


def balanced_subset(labels: Tensor, count: int) -> Tensor:
    """Indices of ``count`` examples, equally many a class up to one, the same on every call.

    A larger subset contains every smaller one.

    Raises:
        ValueError: If there are fewer examples than that.
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


def seed_of(purpose: str, *numbers: int) -> int:
    """A seed of its own for each purpose and numbers (seed of the run, epoch)."""
    text = " ".join([purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def _shuffled(size: int, seed: int, number: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed_of("shuffle", seed, number))
    return torch.randperm(size, generator=generator)
