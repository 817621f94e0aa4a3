"""Refuses networks that cannot be measured as they stand, and says what to do."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["refuse"]

_WHOLE = "measure the network before it is sharded, and give the Split to riembn.build_optimizer."


def refuse(model: nn.Module) -> None:
    """Raise ValueError if a copy of the model cannot be measured."""
    for module in model.modules():
        # By name, because importing the class takes half a second.
        if type(module).__name__ == "FullyShardedDataParallel":
            raise ValueError(
                "split: FullyShardedDataParallel keeps flat pieces of the weights, not weight rows; shard with "
                f"torch.distributed.fsdp.fully_shard instead, and {_WHOLE}"
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                "split: a scripted module hides its eps and dropout; give the module it was made from."
            )
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "placements"):
            raise ValueError(f"split: {name!r} lies in parts on several devices; {_WHOLE}")
        if nn.parameter.is_lazy(parameter):
            raise ValueError(
                "split: the model has uninitialized (lazy) parameters; run it once on the example first."
            )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise ValueError(
                f"split: {name!r} is on the meta device and holds no numbers; bring the network to a real one "
                "(model.to_empty(device=...), then initialize or load it)."
            )
