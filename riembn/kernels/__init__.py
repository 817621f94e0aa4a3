"""Fused row updates: compiled on first use, never required."""

from types import ModuleType

import torch
from torch import Tensor

from ..geometry import Layout
from . import c_library as c_library
from . import cpu as cpu
from . import cuda as cuda


def fused(p: Tensor, layout: Layout) -> ModuleType | None:
    """The module whose fused step takes ``p``, or None."""
    return cpu if cpu.takes(p, layout) else cuda if cuda.takes(p, layout) else None


def paths() -> dict[str, str]:
    """How `SGDG`, `AdamG` and `PSISGD` move weights on each device of this machine, and why.

    Returns:
        For "cpu", and "cuda:0" and so on, "fused" with what the kernels take there, or "lists of tensors", which take
        any weight and are slower, with the reason. Compiles the step for a CPU if that has not been done yet.
    """
    made, told = c_library.found()
    lists = "lists of tensors: "
    found = {"cpu": f"fused ({cpu.TAKEN}): {told}" if made else lists + told}
    for i in range(torch.cuda.device_count()):
        why = cuda.unfit(torch.device("cuda", i))
        found[f"cuda:{i}"] = lists + why if why else f"fused ({cuda.TAKEN}): Triton"
    return found
