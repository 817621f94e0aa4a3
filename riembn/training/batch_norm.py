"""BatchNorm of a batch that lies on several devices, by the mean and variance of all of it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .devices import Devices


def normalize_across(model: nn.Module, devices: Devices, parts: int) -> None:
    """Let the devices that share a part of a batch normalize it together, where there are more than parts.

    In plain operations, so on any device and backend, where `torch.nn.SyncBatchNorm` is for GPUs; the running
    variance is the biased one, as in `riembn.models`.

    Args:
        model: Its BatchNorm layers are changed, in training mode only.
        devices: All of the run's; those with neighboring numbers share a part.
        parts: How many parts a batch has.
    """
    sharing = devices.count // parts
    if sharing <= 1:
        return
    groups = [range(start, start + sharing) for start in range(0, devices.count, sharing)]
    made = [torch.distributed.new_group(list(ranks)) for ranks in groups]  # every process makes all of them
    group = made[devices.rank // sharing]
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            setattr(module, "forward", partial(_forward, module, type(module).forward, group))  # noqa: B010


def _mean(value: Tensor, group: Any) -> Tensor:
    """The mean of a tensor over the devices of a group; its gradient is the mean of theirs."""
    from torch.distributed.nn.functional import all_reduce  # not there in every build of torch

    return all_reduce(value, group=group) / group.size()


def _forward(module: nn.modules.batchnorm._BatchNorm, alone: Any, group: Any, input: Tensor) -> Tensor:
    if not module.training:
        return alone(module, input)
    x = input.to(torch.promote_types(input.dtype, torch.float32))
    along = [d for d in range(x.dim()) if d != 1]
    column = [-1] + [1] * (x.dim() - 2)
    mean = _mean(x.mean(along), group)
    centered = x - mean.view(column)
    var = _mean(centered.square().mean(along), group)
    output = centered * torch.rsqrt(var + module.eps).view(column)
    if module.weight is not None:
        output = output * module.weight.view(column)
    if module.bias is not None:
        output = output + module.bias.view(column)
    with torch.no_grad():
        for running, batch in ((module.running_mean, mean), (module.running_var, var)):
            if running is not None and module.momentum is not None:
                running.lerp_(batch, module.momentum)
        if module.num_batches_tracked is not None:
            module.num_batches_tracked.add_(1)
    return output.to(input.dtype)
