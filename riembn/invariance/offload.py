"""What a forward pass keeps for the backward pass waits in a temporary file, not in memory."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from riembn.invariance.heap import Heap

_LEAST = 2**14
"""Smaller tensors, in bytes, stay in memory."""


@contextlib.contextmanager
def _plainly() -> Iterator[None]:
    """Outside of modes and of the graph."""
    with torch._C.DisableTorchFunction(), torch.no_grad():
        yield


class _Place(NamedTuple):
    """Where a tensor lies: its numbers in order of falling stride, the dimensions in that order."""

    start: int
    shape: tuple[int, ...]
    order: tuple[int, ...]
    dtype: torch.dtype


class Offload(torch.autograd.graph.saved_tensors_hooks):
    """Inside, activations on the CPU that the gradient needs are written to a file, and read when it needs them.

    What does not fit on the disk stays in memory, as do parameters, which are there anyway. The file has no name,
    so that it is gone with the process; it lies where Python's ``tempfile`` puts it (``TMPDIR``).

    Args:
        heap: Gives back what was freed.
    """

    def __init__(self, heap: Heap) -> None:
        super().__init__(self._pack, self._unpack)
        self._heap = heap
        self._file: Any = None

    def __enter__(self) -> None:
        with contextlib.suppress(OSError):
            self._file = tempfile.TemporaryFile(buffering=0)  # a full disk is to tell at once
        super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        if self._file is not None:
            self._file.close()

    @_plainly()
    def _pack(self, tensor: Tensor) -> Tensor | _Place:
        if not self._offloads(tensor):
            return tensor
        order = tuple(sorted(range(tensor.dim()), key=tensor.stride, reverse=True))
        ordered = tensor.detach().permute(order).contiguous()
        try:
            start, numbers = self._file.seek(0, 2), _bytes(ordered)
            while numbers:
                numbers = numbers[self._file.write(numbers) :]
        except OSError:  # the disk is full
            return tensor
        self._heap.look()
        return _Place(start, tuple(ordered.shape), order, tensor.dtype)

    @_plainly()
    def _unpack(self, packed: Tensor | _Place) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        self._heap.look()
        ordered = torch.empty(packed.shape, dtype=packed.dtype)
        self._file.seek(packed.start)
        numbers = _bytes(ordered)
        while numbers:
            numbers = numbers[self._file.readinto(numbers) :]
        return ordered.permute([packed.order.index(dimension) for dimension in range(len(packed.order))])

    def _offloads(self, tensor: Tensor) -> bool:
        if self._file is None or type(tensor) is not Tensor or tensor.device.type != "cpu":
            return False
        base = tensor if tensor._base is None else tensor._base
        if base.is_leaf and base.requires_grad or tensor.layout != torch.strided or tensor.is_conj() or tensor.is_neg():
            return False
        return tensor.nbytes >= _LEAST and tensor.nbytes <= tensor.untyped_storage().nbytes()


def _bytes(tensor: Tensor) -> memoryview:
    """Those of a contiguous tensor."""
    return tensor.view(-1).view(torch.uint8).numpy().data
