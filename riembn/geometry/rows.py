"""How a weight tensor is read as a stack of weight rows.

`Layout` names the three values that say it. They are plain, so that they can live in an optimizer's param group and
in its state dict, under these names:

``row_dim``
    The dimension of the output channels: 0 for linear layers and convolutions, 1 for transposed convolutions.
``conv_groups``
    ``groups`` of a transposed convolution, whose weight ``(in, out/groups, ...)`` keeps its groups inside the
    input dimension. 1 everywhere else: a grouped convolution already has one row an output channel.
``channels_per_row``
    How many consecutive output channels share one length: 1 in front of BatchNorm, ``out/groups`` in front of
    ``GroupNorm(groups)``, None (all of them: the tensor is one row) in front of LayerNorm and RMSNorm.

Where only weight and bias together are one row, its bias entries stand behind its weight entries.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Layout(NamedTuple):
    """How the weight rows of a tensor lie in it; the three values are as the module says.

    Every method raises ValueError if the tensor has fewer than two dimensions or does not divide into such rows.
    """

    row_dim: int = 0
    conv_groups: int = 1
    channels_per_row: int | None = 1

    @classmethod
    def of(cls, group: Mapping[str, Any]) -> Layout:
        """The layout that a param group names; what it leaves out has its default."""
        return cls(**{key: group[key] for key in cls._fields if key in group})

    def view(self, weight: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """The tensor with its dimensions parted into those that number the rows and those that run along one.

        Returns:
            A view of ``weight``, whatever its strides, and the dimensions of that view to reduce over (with
            ``keepdim=True``, so that the result broadcasts) to get one value a row.
        """
        channels, size = self.channels(weight), self.channels_per_row
        if size is None:
            return weight, tuple(range(weight.dim()))
        if self.conv_groups == 1:
            view = weight.unflatten(self.row_dim, (channels // size, size))
            kept = {self.row_dim}
        elif channels // self.conv_groups % size == 0:
            # (in, out/groups, ...) -> (groups, in/groups, rows, per row, ...)
            view = weight.unflatten(1, (-1, size)).unflatten(0, (self.conv_groups, -1))
            kept = {0, 2}
        else:  # a row spans several groups of the convolution
            view = weight.unflatten(0, (channels // size, -1))
            kept = {0}
        return view, tuple(d for d in range(view.dim()) if d not in kept)

    def row_count(self, weight: Tensor) -> int:
        """How many weight rows the tensor holds."""
        channels = self.channels(weight)
        return 1 if self.channels_per_row is None else channels // self.channels_per_row

    def rows(self, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The weight rows, each followed by its entries of ``bias`` if that is given, as the rows of a matrix.

        Args:
            weight: Any tensor of two or more dimensions.
            bias: One entry an output channel, shape ``(channels,)``.

        Returns:
            Shape ``(rows, fan_in)``, a view of ``weight`` where its strides allow, else a copy; with a bias
            ``(rows, fan_in + channels a row)``, always a copy.
        """
        view, along = self.view(weight)
        numbering = [d for d in range(view.dim()) if d not in along]
        count = math.prod([view.shape[d] for d in numbering])
        fan_in = math.prod([view.shape[d] for d in along])
        rows = view.permute(*numbering, *along).reshape(count, fan_in)
        if bias is None:
            return rows
        channels = self.channels(weight)
        if tuple(bias.shape) != (channels,):
            raise ValueError(
                f"Layout.rows: a bias of shape {tuple(bias.shape)} does not belong to a weight of shape "
                f"{tuple(weight.shape)} with {channels} output channels; give one entry a channel."
            )
        return torch.cat([rows, bias.reshape(count, self.channels_per_row or channels)], dim=1)

    def tensors(self, rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, ...]:
        """The inverse of `rows`: weight, and bias if there is one; the tensors given are only looked at.

        Returns:
            Tensors of ``weight``'s and of ``bias``'s shape; views of ``rows`` where strides allow.
        """
        if bias is not None:
            of_weight, of_bias = rows.tensor_split([rows.shape[1] - bias.numel() // max(len(rows), 1)], dim=1)
            return *self.tensors(of_weight, weight), of_bias.reshape(bias.shape)
        view, along = self.view(weight)
        order = [*(d for d in range(view.dim()) if d not in along), *along]
        unpermuted = rows.reshape([view.shape[d] for d in order]).permute(
            *map(order.index, range(view.dim()))
        )
        return (unpermuted.reshape(weight.shape),)

    def granularities(self, weight: Tensor) -> list[Layout]:
        """This layout with every number of channels a row that fits, from one channel to the whole tensor."""
        channels = weight.shape[self.row_dim] * self.conv_groups
        sizes: list[int | None] = [k for k in range(1, channels) if channels % k == 0 and self._parts(weight, k)]
        return [self._replace(channels_per_row=size) for size in ([*sizes, None] if channels > 1 else [1])]

    def channels(self, weight: Tensor) -> int:
        """Output channels over all groups, once the layout is known to fit."""
        row_dim, conv_groups, size = self
        shape = tuple(weight.shape)
        if weight.dim() < 2:
            raise ValueError(
                f"Layout: a weight of shape {shape} is no stack of weight rows, which has two or more "
                "dimensions; leave biases and normalization scales to another optimizer."
            )
        if not 0 <= row_dim < weight.dim():
            raise ValueError(f"Layout: row_dim={row_dim} is no dimension of a weight of shape {shape}.")
        if conv_groups < 1 or (conv_groups > 1 and (row_dim != 1 or shape[0] % conv_groups)):
            raise ValueError(
                f"Layout: conv_groups={conv_groups} with row_dim={row_dim} does not fit a weight of shape {shape}; "
                "it is for transposed convolutions (row_dim=1), whose dimension 0 it divides."
            )
        in_group, channels = shape[row_dim], shape[row_dim] * conv_groups
        if size is None:
            return channels
        if size < 1 or channels % size:
            raise ValueError(
                f"Layout: the {channels} output channels of a weight of shape {shape} do not divide "
                f"into rows of channels_per_row={size}; give a divisor, or None for one row."
            )
        if not self._parts(weight, size):
            raise ValueError(
                f"Layout: rows of channels_per_row={size} cut across the {conv_groups} groups of "
                f"{in_group} output channels of a weight of shape {shape}; give a divisor or a "
                f"multiple of {in_group}."
            )
        return channels

    def _parts(self, weight: Tensor, size: int) -> bool:
        """Whether rows of ``size`` channels part the groups of a transposed convolution, or join whole ones."""
        in_group = weight.shape[self.row_dim]
        return self.conv_groups == 1 or not in_group % size or not size % in_group


def weights_of(groups: Iterable[Mapping[str, Any]]) -> list[tuple[tuple[Tensor, ...], Layout]]:
    """The weights of param groups, each with how it lies.

    Args:
        groups: As `riembn.Split.groups` gives them.

    Returns:
        A weight alone, ``(weight,)``, or with the bias that its weight rows go on in, ``(weight, bias)``: what
        `Layout.rows` takes.
    """
    found: list[tuple[tuple[Tensor, ...], Layout]] = []
    for group in groups:
        params = list(group["params"])
        own = zip(params[::2], params[1::2], strict=True) if group.get("joint") else zip(params, strict=True)
        found += [(tensors, Layout.of(group)) for tensors in own]
    return found


@torch.no_grad()
def scale_rows(tensors: tuple[Tensor, ...], layout: Layout, factors: Tensor) -> None:
    """Multiply every weight row of a weight, or of a weight and its bias, by a factor, shape ``(rows,)``."""
    scaled = layout.tensors(layout.rows(*tensors) * factors.unsqueeze(1), *tensors)
    for tensor, by_rows in zip(tensors, scaled, strict=True):
        tensor.copy_(by_rows)


def to_rows(
    weight: Tensor, *, row_dim: int = 0, conv_groups: int = 1, channels_per_row: int | None = 1
) -> Tensor:
    """The weight rows of a tensor as the rows of a matrix.

    Args:
        weight: Any tensor of two or more dimensions; the layout's three values are as the module says.

    Returns:
        Shape ``(rows, fan_in)``; a view of ``weight`` where its strides allow, else a copy.

    Raises:
        ValueError: If the tensor has fewer than two dimensions or does not divide into such rows.
    """
    return Layout(row_dim, conv_groups, channels_per_row).rows(weight)


def from_rows(
    rows: Tensor,
    weight: Tensor,
    *,
    row_dim: int = 0,
    conv_groups: int = 1,
    channels_per_row: int | None = 1,
) -> Tensor:
    """The inverse of `to_rows`: a tensor of ``weight``'s shape from its rows; ``weight`` is only looked at.

    Args:
        rows: Shape ``(rows, fan_in)``.
        weight: A tensor of the shape wanted.

    Returns:
        A tensor of ``weight``'s shape; a view of ``rows`` where strides allow.
    """
    return Layout(row_dim, conv_groups, channels_per_row).tensors(rows, weight)[0]
