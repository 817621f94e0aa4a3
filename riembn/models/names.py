"""Which model does a name such as "wrn-28-10" stand for?"""

from __future__ import annotations

import re

from torch import nn

from .vgg import vgg
from .wide_resnet import wide_resnet

__all__ = ["build"]

_ACCEPTED = "vgg-DEPTH (vgg-11, vgg-13, vgg-16, vgg-19) or wrn-DEPTH-WIDEN (wrn-16-4, wrn-28-10, …)"


def build(
    network: str, *, num_classes: int, in_channels: int, width: float = 1.0, dropout: float = 0.0
) -> nn.Module:
    """The model a name stands for, with fresh weights.

    Args:
        network: ``"vgg-13"`` is ``vgg(13)``, ``"wrn-28-10"`` is ``wide_resnet(28, 10)``; the last number may
            be a decimal, ``"wrn-16-0.5"``.
        num_classes: Size of the output.
        in_channels: Channels of the images.
        width: Factor on the channels; for a WRN on top of the name's own.
        dropout: Probability, for a WRN only.

    Raises:
        ValueError: If the name is unknown, or the model refuses an argument.
    """
    name = network if isinstance(network, str) else ""
    if found := re.fullmatch(r"vgg-(\d+)", name):
        if dropout:
            raise ValueError(f"build: dropout={dropout!r} with {name!r}; only a wrn has dropout, give 0.")
        return vgg(int(found[1]), num_classes, width, in_channels)
    if found := re.fullmatch(r"wrn-(\d+)-(\d+(?:\.\d+)?)", name):
        return wide_resnet(int(found[1]), float(found[2]) * width, num_classes, dropout, in_channels)
    raise ValueError(f"build: unknown network {network!r}; give {_ACCEPTED}.")
