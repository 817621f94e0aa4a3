"""How a weight tensor is read as a stack of weight vectors, one a row.

A layout is three plain values, so that it can live in an optimizer's param group and in its state dict:

``row_dim``
    The dimension of the output channels: 0 for linear layers and convolutions, 1 for transposed convolutions.
``conv_groups``
    ``groups`` of a transposed convolution, whose weight ``(in, out/groups, ...)`` keeps its groups inside the
    input dimension. 1 everywhere else: a grouped convolution already has one row an output channel.
``channels_per_row``
    How many consecutive output channels share one length: 1 in front of BatchNorm, ``out/groups`` in front of
    ``GroupNorm(groups)``, None (all of them: the tensor is one vector) in front of LayerNorm and RMSNorm.

Where only weight and bias together are one vector, its bias entries stand behind its weight entries.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["from_joint_rows", "from_rows", "row_count", "row_view", "to_joint_rows", "to_rows"]


def row_view(
    weight: Tensor, *, row_dim: int = 0, conv_groups: int = 1, channels_per_row: int | None = 1
) -> tuple[Tensor, tuple[int, ...]]:
    """The tensor with its dimensions parted into those that number the rows and those that run along one.

    Args:
        weight: Any tensor of two or more dimensions; the layout's three values are as the module says.

    Returns:
        A view of ``weight``, whatever its strides, and the dimensions of that view to reduce over (with
        ``keepdim=True``, so that the result broadcasts) to get one value a row.

    Raises:
        ValueError: If the tensor has fewer than two dimensions or does not divide into such rows.
    """
    channels = _channels(weight, row_dim, conv_groups, channels_per_row)
    if channels_per_row is None:
        return weight, tuple(range(weight.dim()))
    if conv_groups == 1:
        view = weight.unflatten(row_dim, (channels // channels_per_row, channels_per_row))
        kept = {row_dim}
    elif channels // conv_groups % channels_per_row == 0:
        # (in, out/groups, ...) -> (groups, in/groups, rows, per row, ...)
        view = weight.unflatten(1, (-1, channels_per_row)).unflatten(0, (conv_groups, -1))
        kept = {0, 2}
    else:  # a row spans several groups of the convolution
        view = weight.unflatten(0, (channels // channels_per_row, -1))
        kept = {0}
    return view, tuple(d for d in range(view.dim()) if d not in kept)


def to_rows(
    weight: Tensor, *, row_dim: int = 0, conv_groups: int = 1, channels_per_row: int | None = 1
) -> Tensor:
    """The weight vectors of a tensor as the rows of a matrix.

    Args:
        weight: Any tensor of two or more dimensions; the layout's three values are as the module says.

    Returns:
        Shape ``(rows, fan_in)``; a view of ``weight`` where its strides allow, else a copy.

    Raises:
        ValueError: If the tensor has fewer than two dimensions or does not divide into such rows.
    """
    view, along = row_view(
        weight, row_dim=row_dim, conv_groups=conv_groups, channels_per_row=channels_per_row
    )
    numbering = [d for d in range(view.dim()) if d not in along]
    rows = math.prod([view.shape[d] for d in numbering])
    fan_in = math.prod([view.shape[d] for d in along])
    return view.permute(*numbering, *along).reshape(rows, fan_in)


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
    view, along = row_view(
        weight, row_dim=row_dim, conv_groups=conv_groups, channels_per_row=channels_per_row
    )
    order = [*(d for d in range(view.dim()) if d not in along), *along]
    unpermuted = rows.reshape([view.shape[d] for d in order]).permute(*map(order.index, range(view.dim())))
    return unpermuted.reshape(weight.shape)


def to_joint_rows(
    weight: Tensor, bias: Tensor, *, row_dim: int = 0, conv_groups: int = 1, channels_per_row: int | None = 1
) -> Tensor:
    """The vectors of a weight, each followed by the entries of the bias that its channels have.

    Args:
        weight: As for `to_rows`, the layout's three values too.
        bias: Shape ``(channels,)``, one entry an output channel of ``weight``.

    Returns:
        Shape ``(rows, fan_in + channels a row)``, always a copy.

    Raises:
        ValueError: As `to_rows`; if the bias does not have one entry a channel.
    """
    rows = to_rows(weight, row_dim=row_dim, conv_groups=conv_groups, channels_per_row=channels_per_row)
    channels = _channels(weight, row_dim, conv_groups, channels_per_row)
    if tuple(bias.shape) != (channels,):
        raise ValueError(
            f"to_joint_rows: a bias of shape {tuple(bias.shape)} does not belong to a weight of shape "
            f"{tuple(weight.shape)} with {channels} output channels; give one entry a channel."
        )
    return torch.cat([rows, bias.reshape(len(rows), channels_per_row or channels)], dim=1)


def from_joint_rows(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    row_dim: int = 0,
    conv_groups: int = 1,
    channels_per_row: int | None = 1,
) -> tuple[Tensor, Tensor]:
    """The inverse of `to_joint_rows`: weight and bias from their rows; the tensors given are only looked at.

    Returns:
        Tensors of ``weight``'s and of ``bias``'s shape; views of ``rows`` where strides allow.
    """
    of_weight, of_bias = rows.tensor_split([rows.shape[1] - bias.numel() // max(len(rows), 1)], dim=1)
    return (
        from_rows(
            of_weight, weight, row_dim=row_dim, conv_groups=conv_groups, channels_per_row=channels_per_row
        ),
        of_bias.reshape(bias.shape),
    )


def row_count(
    weight: Tensor, *, row_dim: int = 0, conv_groups: int = 1, channels_per_row: int | None = 1
) -> int:
    """How many weight vectors `to_rows` gives; arguments and errors are the same."""
    channels = _channels(weight, row_dim, conv_groups, channels_per_row)
    return 1 if channels_per_row is None else channels // channels_per_row


def _channels(weight: Tensor, row_dim: int, conv_groups: int, channels_per_row: int | None) -> int:
    """Output channels over all groups, once the layout is known to fit."""
    shape = tuple(weight.shape)
    if weight.dim() < 2:
        raise ValueError(
            f"row_view: a weight of shape {shape} is no stack of weight vectors, which has two or more "
            "dimensions; leave biases and normalization scales to another optimizer."
        )
    if not 0 <= row_dim < weight.dim():
        raise ValueError(f"row_view: row_dim={row_dim} is no dimension of a weight of shape {shape}.")
    if conv_groups < 1 or (conv_groups > 1 and (row_dim != 1 or shape[0] % conv_groups)):
        raise ValueError(
            f"row_view: conv_groups={conv_groups} with row_dim={row_dim} does not fit a weight of shape {shape}; "
            "it is for transposed convolutions (row_dim=1), whose dimension 0 it divides."
        )
    in_group, channels = shape[row_dim], shape[row_dim] * conv_groups
    if channels_per_row is None:
        return channels
    if channels_per_row < 1 or channels % channels_per_row:
        raise ValueError(
            f"row_view: the {channels} output channels of a weight of shape {shape} do not divide "
            f"into rows of channels_per_row={channels_per_row}; give a divisor, or None for one row."
        )
    if conv_groups > 1 and in_group % channels_per_row and channels_per_row % in_group:
        raise ValueError(
            f"row_view: rows of channels_per_row={channels_per_row} cut across the {conv_groups} groups of "
            f"{in_group} output channels of a weight of shape {shape}; give a divisor or a "
            f"multiple of {in_group}."
        )
    return channels
