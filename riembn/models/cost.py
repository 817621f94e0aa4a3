"""Counts the multiplications of a forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def multiplications(model: nn.Module, example: Any) -> dict[str, int]:
    """Count the multiplications of one forward pass, those of convolutions and matrix products.

    Each comes with an addition, which is not counted. The pass runs without gradients, in the mode that the network
    is in; on the meta device nothing is computed.

    Args:
        model: The network.
        example: What it is called with: a batch, whose images are all counted.

    Returns:
        Multiplications by the names of the modules that they happen in, as `torch.nn.Module.named_modules` gives
        them. A module's number has those of its children in it: ``""`` is the whole network.
    """
    from torch.utils.flop_counter import FlopCounterMode  # what only counting needs

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(example)
    # Torch names a module "VGG.features.0", and counts a multiplication and its addition as two.
    counted = {name.partition(".")[2]: sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()}
    return {**counted, "": counter.get_total_flops() // 2}
