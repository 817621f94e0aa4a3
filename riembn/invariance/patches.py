"""A convolution in float64 lays the patches of all its images side by side; here of as many as there is room for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from riembn.invariance.heap import Heap

CONVOLUTIONS: set[Callable[..., Any]] = {torch.conv1d, torch.conv2d, torch.conv3d}
_FORWARD, _BACKWARD = torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default

# Each slice has a gradient of the weight, and torch's copies of it, which glibc puts beside those of the last one. So
# much has to be saved, in sizes of the weight; at three, memory grew.
_OF_A_WEIGHT = 4


class Patches(TorchDispatchMode):
    """Inside, convolutions on the CPU and their gradients go through a batch by slices, where that saves memory.

    This is below the graph of gradients, which stays as it is; so do all numbers, to rounding.

    Args:
        heap: The patches of a slice take a step of it, or are those of one image.
    """

    def __init__(self, heap: Heap) -> None:
        super().__init__()
        self._heap = heap

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        with torch._C.DisableTorchFunction():  # modes would take it for something that the model does
            if func is _FORWARD:
                images, weight, _, stride, _, _, transposed, *_ = args
                count = self._at_a_time(images, weight, stride, transposed, self._heap.step)
                if count is not None:
                    return self._forward(images, count, *args[1:])
            if func is _BACKWARD:
                groups = self._groups_at_a_time(*args[1:3], transposed=args[7], groups=args[9])
                return self._backward(*args) if groups is None else self._backward_by_groups(groups, *args)
            return func(*args, **(kwargs or {}))

    def _forward(self, images: Tensor, count: int, *rest: Any) -> Tensor:
        out: Tensor | None = None
        for start, part in zip(range(0, len(images), count), images.split(count), strict=True):
            done = _FORWARD(part, *rest)
            out = _of_size(len(images), done) if out is None else out
            out[start : start + count] = done
            del done
            self._heap.look()
        assert out is not None
        return out

    def _backward(self, outer: Tensor, images: Tensor, *rest: Any) -> tuple[Tensor | None, ...]:
        """The gradients of the images, the weight and the bias; None where none is asked for."""
        weight, _, stride, _, _, transposed, *_ = rest
        least = max(self._heap.step, _OF_A_WEIGHT * weight.nbytes)
        count = self._at_a_time(images, weight, stride, transposed, least)
        if count is None:
            return _BACKWARD(outer, images, *rest)
        of_images: Tensor | None = None
        sums: list[Tensor | None] = []
        starts = range(0, len(images), count)
        for start, *parts in zip(starts, outer.split(count), images.split(count), strict=True):
            done, *more = _BACKWARD(*parts, *rest)
            if done is not None:
                of_images = _of_size(len(images), done) if of_images is None else of_images
                of_images[start : start + count] = done
            sums = [a if a is None else a.add_(b) for a, b in zip(sums, more, strict=True)] if sums else more
            del done, more
            self._heap.look()
        return of_images, *sums

    def _backward_by_groups(
        self, count: int, outer: Tensor, images: Tensor, weight: Tensor, bias: Sequence[int] | None, *rest: Any
    ) -> tuple[Tensor | None, ...]:
        """The same of so many groups at a time: torch takes them one by one, and then lays all of them side by side."""
        *how, groups, mask = rest
        sizes = (images.shape, weight.shape, bias or ())
        wholes = [images.new_empty(size) if asked else None for size, asked in zip(sizes, mask, strict=True)]
        for start in range(0, groups, count):
            now = min(count, groups - start)
            ins, outs = (
                slice(start * n // groups, (start + now) * n // groups) for n in (images.size(1), weight.size(0))
            )
            of_bias = None if bias is None else [outs.stop - outs.start]
            parts = self._backward(outer[:, outs], images[:, ins], weight[outs], of_bias, *how, now, mask)
            places: tuple[Any, ...] = ((slice(None), ins), outs, outs)
            for whole, part, place in zip(wholes, parts, places, strict=True):
                if whole is not None and part is not None:
                    whole[place] = part
            del parts, part
            self._heap.look()
        return tuple(wholes)

    def _groups_at_a_time(self, images: Tensor, weight: Tensor, *, transposed: bool, groups: int) -> int | None:
        """How many groups have room; None for all of them, or where there is one."""
        if groups == 1 or transposed or not _is_sliced(images):
            return None
        bytes_of_one = max(images.nbytes // groups * math.prod(weight.shape[2:]), 1)
        count = max(1, int(self._heap.step // bytes_of_one))
        return count if (groups - count) * bytes_of_one > self._heap.step else None

    def _at_a_time(
        self, images: Tensor, weight: Tensor, stride: Sequence[int], transposed: bool, least: float
    ) -> int | None:
        """How many images have room; None for all of them, or if less than ``least`` bytes would be saved."""
        kernel, samples = math.prod(weight.shape[2:]), images.shape[0]
        if not _is_sliced(images) or transposed or kernel == 1 or images.dim() != weight.dim():
            return None
        patches = images.nbytes // max(samples, 1) * kernel // max(math.prod(stride), 1)
        count = max(1, int(self._heap.step // max(patches, 1)))
        return count if (samples - count) * patches > least else None


def _is_sliced(images: Tensor) -> bool:
    """Whether these are images whose patches torch lays side by side."""
    return type(images) is Tensor and images.dtype == torch.float64 and images.device.type == "cpu"


def _of_size(count: int, part: Tensor) -> Tensor:
    """An empty tensor for so many images, which lie in memory as those of the part do."""
    order = [0, *sorted(range(1, part.dim()), key=part.stride, reverse=True)]
    empty = part.new_empty([count, *(part.shape[d] for d in order[1:])])
    return empty.permute([order.index(d) for d in range(part.dim())])
