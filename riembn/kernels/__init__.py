"""Fused row updates: compiled on first use, never required."""

from types import ModuleType

from torch import Tensor

from ..geometry import Layout
from . import cpu as cpu
from . import cuda as cuda


def fused(p: Tensor, layout: Layout) -> ModuleType | None:
    """The module whose fused step takes ``p``, or None."""
    return cpu if cpu.takes(p, layout) else cuda if cuda.takes(p, layout) else None
