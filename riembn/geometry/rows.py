"""How a weight tensor is read as a stack of weight vectors, one a row.

A layout is three plain integers, so that it can live in an optimizer's param group and in its state dict:

``row_dim``
    The dimension of the output channels: 0 for linear layers and convolutions, 1 for transposed convolutions.
``conv_groups``
    ``groups`` of a transposed convolution, whose weight ``(in, out/groups, …)`` keeps its groups inside the
    input dimension. 1 everywhere else: a grouped convolution already has one row an output channel.
``channels_per_row``
    How many consecutive output channels share one length: 1 in front of BatchNorm, ``out/groups`` in front of
    ``GroupNorm(groups)``, None (all of them: the tensor is one vector) in front of LayerNorm and RMSNorm.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["from_rows", "row_count", "to_rows"]


def to_rows(
    weight: Tensor, *, row_dim: int = 0, conv_groups: int = 1, channels_per_row: int | None = 1
) -> Tensor:
    r"""The weight vectors of a tensor as the rows of a matrix.

    Args:
        weight: Any tensor of two or more dimensions; ``row_dim``, ``conv_groups``, ``channels_per_row`` as
            the module says.

    Returns:
        Shape ``(rows, fan_in)``: a view of ``weight`` where its strides allow (every contiguous or
        channels_last weight with ``row_dim=0``), else a copy. The order of the entries within a row follows
        memory where that avoids a copy; nothing on the sphere depends on it, but tensors to be combined
        entry by entry (weight, gradient, momentum) must have equal strides or be made so first.

    Raises:
        ValueError: If the tensor has fewer than two dimensions or does not divide into such rows.
    """
    channels = _channels(weight, row_dim, conv_groups)
    per_row = channels if channels_per_row is None else channels_per_row
    if per_row < 1 or channels % per_row:
        raise ValueError(
            f"to_rows: {channels} output channels of a weight of shape {tuple(weight.shape)} do not divide "
            f"into rows of {channels_per_row}; give a divisor of {channels}, or None for one row."
        )
    if row_dim == 0:
        # channels_last keeps the input channels innermost: read in that order, each row is contiguous.
        inner = sorted(range(1, weight.dim()), key=weight.stride, reverse=True)
        return weight.permute(0, *inner).reshape(channels // per_row, -1)
    # (in, out/groups, k…) -> (groups, in/groups, out/groups, k…) -> (groups, out/groups, in/groups, k…)
    grouped = weight.movedim(row_dim, 1).unflatten(0, (conv_groups, -1)).transpose(1, 2)
    return grouped.reshape(channels // per_row, -1)


def from_rows(
    rows: Tensor,
    weight: Tensor,
    *,
    row_dim: int = 0,
    conv_groups: int = 1,
    channels_per_row: int | None = 1,
) -> Tensor:
    """The inverse of `to_rows`: rows back in the shape (and row layout) of ``weight``, which is not changed.

    Args:
        rows: Shape ``(rows, fan_in)``, from `to_rows` of a tensor with ``weight``'s shape and strides.
        weight: The tensor whose shape and strides tell the layout.

    Returns:
        A tensor of ``weight``'s shape; a view of ``rows`` where strides allow.
    """
    channels = _channels(weight, row_dim, conv_groups)
    if row_dim == 0:
        inner = sorted(range(1, weight.dim()), key=weight.stride, reverse=True)
        order = (0, *inner)
        permuted = rows.reshape([weight.shape[i] for i in order])
        return permuted.permute(sorted(range(weight.dim()), key=order.__getitem__))
    moved = weight.movedim(row_dim, 1).shape  # (in, out/groups, k…)
    grouped = rows.reshape(conv_groups, channels // conv_groups, moved[0] // conv_groups, *moved[2:])
    return grouped.transpose(1, 2).flatten(0, 1).movedim(1, row_dim)


def row_count(
    weight: Tensor, *, row_dim: int = 0, conv_groups: int = 1, channels_per_row: int | None = 1
) -> int:
    """How many weight vectors `to_rows` would give."""
    return 1 if channels_per_row is None else _channels(weight, row_dim, conv_groups) // channels_per_row


def _channels(weight: Tensor, row_dim: int, conv_groups: int) -> int:
    """Output channels, over all groups, once the layout is known to fit."""
    if weight.dim() < 2:
        raise ValueError(
            f"to_rows: a weight of shape {tuple(weight.shape)} is no stack of weight vectors; two or more "
            "dimensions are needed. Leave biases and normalisation scales to another optimizer."
        )
    if not 0 <= row_dim < weight.dim():
        raise ValueError(f"to_rows: row_dim={row_dim} is no dimension of a weight of shape {tuple(weight.shape)}.")
    if conv_groups != 1 and (row_dim == 0 or weight.shape[0] % conv_groups):
        raise ValueError(
            f"to_rows: conv_groups={conv_groups} with row_dim={row_dim} does not fit a weight of shape "
            f"{tuple(weight.shape)}; it is for transposed convolutions (row_dim=1) whose dimension 0 it divides."
        )
    return weight.shape[row_dim] * conv_groups
