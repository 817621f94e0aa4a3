"""Networks in the channels_last memory format, kept off a kernel that corrupts memory there."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class SubsampledConv2d(nn.Conv2d):
    """A strided 1x1 convolution, computed as one of stride 1 on the pixels that it reads.

    The result is that of ``nn.Conv2d``, in every memory format and under ``torch.compile``.
    """

    def forward(self, input: Tensor) -> Tensor:
        down, right = self.stride
        return functional.conv2d(input[..., ::down, ::right], self.weight, self.bias, groups=self.groups)


def without_overrun(module: nn.Module) -> nn.Module:
    """``module`` itself, made a `SubsampledConv2d` if it is a strided 1x1 convolution of fewer than 16 channels.

    For its weight gradient oneDNN, torch's library on x86 CPUs, gathers the pixels that such a convolution reads.
    In the channels_last format the buffer is too short where there are fewer input channels than a vector register
    holds values: 8 with AVX2, 16 with AVX-512. What is written behind it makes the process die or hang, or the
    gradient wrong. Compiled networks meet it in either format, since ``torch.compile`` chooses channels_last there.

    Source: github.com/uxlfoundation/oneDNN/issues/6035; so with torch 2.13.
    """
    if (
        type(module) is nn.Conv2d  # a subclass may have a forward of its own
        and module.kernel_size == (1, 1)
        and module.stride != (1, 1)
        and module.padding in ((0, 0), "valid")
        and module.in_channels // module.groups < 16
    ):
        module.__class__ = SubsampledConv2d
    return module


def channels_last(model: nn.Module) -> nn.Module:
    """``model`` itself in the channels_last memory format, its convolutions as `without_overrun` leaves them.

    Parameters, their names and hooks stay. On a CPU a training step takes about two thirds of the time.
    """
    for module in model.modules():
        without_overrun(module)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
