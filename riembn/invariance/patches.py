"""A convolution in float64 lays the patches of all its images side by side; here of as many as there is room for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from riembn.invariance.heap import Heap

CONVOLUTIONS: set[Callable[..., Any]] = {torch.conv1d, torch.conv2d, torch.conv3d}


def convolve(
    heap: Heap,
    func: Callable[..., Any],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    *rest: Any,
    **options: Any,
) -> Tensor:
    """One of ``CONVOLUTIONS``, by slices of the batch if the patches of all of it take more than a step of the heap.

    To rounding it is the same function of its inputs, with the same gradients.
    """
    count = _at_a_time(heap, input, weight, stride)
    if count is None:
        return func(input, weight, bias, stride, *rest, **options)
    done = []
    for images in input.split(count):
        done.append(func(images, weight, bias, stride, *rest, **options))
        heap.look()
    return torch.cat(done)


def _at_a_time(heap: Heap, input: Tensor, weight: Tensor, stride: int | tuple[int, ...]) -> int | None:
    """How many samples have room; None for all of them."""
    batched, kernel = input.dim() == weight.dim() > 2, math.prod(weight.shape[2:])
    if not batched or kernel == 1 or len(input) < 2 or input.device.type != "cpu":
        return None
    steps = stride ** (weight.dim() - 2) if isinstance(stride, int) else math.prod(stride)
    # Those of a grouped convolution are made group by group, but glibc uses the place of none again.
    patches = input[0].nbytes * kernel // steps
    count = max(1, int(heap.step // max(patches, 1)))
    return count if count < len(input) else None
