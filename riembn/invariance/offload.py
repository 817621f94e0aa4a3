"""What a forward pass keeps for the backward pass waits in a temporary file, not in memory."""

from __future__ import annotations

import contextlib
import math
import shutil
import tempfile
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from riembn.invariance.exact import at_rest
from riembn.invariance.heap import Heap

_LEAST = 2**14
"""Smaller tensors, in bytes, stay in memory."""


@contextlib.contextmanager
def _plainly() -> Iterator[None]:
    """Outside of modes and of the graph."""
    with torch._C.DisableTorchFunction(), torch.no_grad():
        yield


class _Place(NamedTuple):
    """Where a tensor lies in the file: its numbers in order of falling stride, the dimensions in that order."""

    start: int
    shape: tuple[int, ...]
    order: tuple[int, ...]
    dtype: torch.dtype


class _Kept(NamedTuple):
    """A tensor as autograd asked to keep it, without numbers if those have a place in the file."""

    tensor: Tensor
    version: int
    place: _Place | None


class Offload(torch.autograd.graph.saved_tensors_hooks):
    """Inside, activations on the CPU that the gradient needs are written to a file, and read when it needs them.

    What has no room stays in memory: the file takes half of what is free on its disk at most. It has no name, so that
    it is gone with the process, and lies where Python's ``tempfile`` puts it (``TMPDIR``); if that is a file system in
    memory, nothing is won. As without it, the backward pass refuses a tensor that was changed in place meanwhile.

    Args:
        heap: Gives back what was freed.
    """

    def __init__(self, heap: Heap) -> None:
        super().__init__(self._pack, self._unpack)
        self._heap, self._lock = heap, threading.Lock()
        self._file: Any = None
        self._end = self._room = 0
        # Of one tensor that several functions keep there is one copy. As long as there is a weak reference to its
        # storage, no other storage has that one's address.
        self._places: dict[tuple[Any, ...], tuple[_Place, StorageWeakRef]] = {}

    def __enter__(self) -> None:
        with contextlib.suppress(OSError):
            self._file = tempfile.TemporaryFile(buffering=0)  # so that a full disk raises in write
            self._room = shutil.disk_usage(tempfile.gettempdir()).free // 2
        super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._places.clear()
        if self._file is not None:
            self._file.close()

    @_plainly()
    def _pack(self, tensor: Tensor) -> _Kept:
        kept = tensor.detach()  # with the same counter of versions; the tensor itself would keep its graph for ever
        place = self._place(tensor) if _is_large(tensor) else None
        if place is not None:
            kept.data = tensor.new_empty(0)  # lets go of the numbers, not of the counter
            self._heap.look()
        return _Kept(kept, tensor._version, place)

    @_plainly()
    def _unpack(self, kept: _Kept) -> Tensor:
        if kept.tensor._version != kept.version:
            raise RuntimeError("a tensor that the gradient needs was changed by an operation in place")
        return kept.tensor if kept.place is None else self._read(kept.place)

    def _place(self, tensor: Tensor) -> _Place | None:
        """Where the tensor lies in the file, to which it is written if it is not there; None if there is no room."""
        storage = tensor.untyped_storage()
        key = storage._cdata, tensor._version, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype
        with self._lock:
            if key in self._places:
                return self._places[key][0]
            if self._file is None or self._end + tensor.nbytes > self._room:
                return None
            order = tuple(sorted(range(tensor.dim()), key=tensor.stride, reverse=True))
            ordered = tensor.detach().permute(order).contiguous()
            place = _Place(self._end, tuple(ordered.shape), order, tensor.dtype)
            try:
                self._file.seek(place.start)
                numbers = _bytes(ordered)
                while numbers:
                    numbers = numbers[self._file.write(numbers) :]
            except OSError:  # the disk is full
                return None
            self._end += tensor.nbytes
            self._places[key] = place, StorageWeakRef(storage)
            return place

    def _read(self, place: _Place) -> Tensor:
        self._heap.look(wanted=place.dtype.itemsize * math.prod(place.shape))
        ordered = torch.empty(place.shape, dtype=place.dtype)
        with self._lock:
            if self._file.closed:
                raise RuntimeError("a second backward pass through one graph, whose activations are gone")
            self._file.seek(place.start)
            numbers = _bytes(ordered)
            while numbers:
                count = self._file.readinto(numbers)
                if not count:
                    raise OSError("the temporary file of activations ends too early")
                numbers = numbers[count:]
        return ordered.permute([place.order.index(dimension) for dimension in range(len(place.order))])


def _is_large(tensor: Tensor) -> bool:
    """Whether memory is won by a copy elsewhere: it is no parameter, expanded from little, lazy or of another kind."""
    plain = type(tensor) is Tensor and tensor.device.type == "cpu" and tensor.layout is torch.strided
    if not plain or at_rest(tensor) or tensor.is_conj() or tensor.is_neg():
        return False
    return _LEAST <= tensor.nbytes <= tensor.untyped_storage().nbytes()


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return tensor.view(-1).view(torch.uint8).numpy().data
