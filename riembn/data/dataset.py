"""What is a data set here? Two tensors, and the names of the classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and their labels, whole, on one device.

    Args:
        images: uint8, shape ``(n, channels, height, width)``, values 0 to 255.
        labels: int64, shape ``(n,)``; ``labels[i]`` indexes ``classes``.
        classes: Name of each class.
        name: What `load` was asked for.

    Raises:
        ValueError: If types or shapes are others.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    name: str

    def __post_init__(self) -> None:
        for what, tensor, dtype, dims in (
            ("images", self.images, torch.uint8, 4),
            ("labels", self.labels, torch.int64, 1),
        ):
            if tensor.dtype != dtype or tensor.dim() != dims:
                given = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
                raise ValueError(f"Dataset: {what} is {given}; give {dtype} with {dims} dimension(s).")
        if len(self.images) != len(self.labels):
            given = f"{len(self.images)} images and {len(self.labels)} labels"
            raise ValueError(f"Dataset: {given}; give one label an image.")

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Dataset:
        """The same data on another device; nothing is copied if it is there already."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def subset(self, indices: Tensor | Sequence[int] | slice) -> Dataset:
        """The images and labels at ``indices``, in their order.

        Args:
            indices: A slice (a view, no copy), or a sequence or int64 tensor of positions (a copy).
        """
        if not isinstance(indices, slice):
            indices = torch.as_tensor(indices, dtype=torch.int64, device=self.labels.device)
        return replace(self, images=self.images[indices], labels=self.labels[indices])
