"""Refuses networks that cannot be measured as they stand, and says what to do."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_WHOLE = "measure the network before it is sharded, and give the Split to riembn.build_optimizer."
_FLAT = (
    "FullyShardedDataParallel keeps flat pieces of the weights, not weight rows; shard with "
    f"torch.distributed.fsdp.fully_shard instead, {_WHOLE}"
)


def flat_pieces(p: Tensor) -> str:
    """What to do about a parameter that FullyShardedDataParallel has cut; empty if it has not."""
    cut = hasattr(p, "_fsdp_flattened") or type(p).__name__ == "FlatParameter"
    return _FLAT if cut and p.dim() < 2 else ""


def refuse_flat(model: nn.Module, caller: str) -> None:
    """Raise ValueError for a network whose weights FullyShardedDataParallel has cut."""
    # By name, because importing the class takes half a second.
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise ValueError(f"{caller}: {_FLAT}")


def refuse(model: nn.Module) -> None:
    """Raise ValueError if a copy of the model cannot be measured."""
    refuse_flat(model, "split")
    for module in model.modules():
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
