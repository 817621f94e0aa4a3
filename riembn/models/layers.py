"""What do the two networks share: batch normalization, initialization, and checks of their sizes?"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from .memory_format import without_overrun


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    r"""Batch normalization of the papers' release: for linear layers and convolutions, with or without gamma.

    .. math:: \mathrm{BN}(z) = \gamma\, \frac{z - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta

    Differs from ``torch.nn.BatchNorm2d`` in three ways: the running averages decay by 0.99 a step (torch:
    0.9), the running variance averages the biased variance of the batch (torch: the unbiased one), and
    beta is there without gamma too. ``SyncBatchNorm.convert_sync_batchnorm`` accepts the module; what it
    returns has torch's unbiased running variance.

    Args:
        channels: Size of dimension 1 of the input, ``(n, channels)`` or ``(n, channels, …)``.
        gamma: Whether the result is scaled by a learned gamma; without it ``weight`` is None.

    Source: the TensorFlow release of Cho and Lee (2017),
    github.com/MinhyungCho/riemannian-batch-normalization.
    """

    def __init__(self, channels: int, *, gamma: bool = True) -> None:
        super().__init__(channels, eps=1e-5, momentum=0.01)
        if not gamma:
            self.register_parameter("weight", None)

    def reset_parameters(self) -> None:
        self.reset_running_stats()
        if self.weight is not None:
            nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() < 2:
            raise ValueError(f"BatchNorm: got an input of shape {tuple(input.shape)}; give (n, channels, …).")
        mean, var, count = self.running_mean, self.running_var, self.num_batches_tracked
        averaging = self.training and self.track_running_stats
        weight = self.weight
        if weight is None and self.bias is not None and input.is_cuda:
            weight = torch.ones_like(self.bias, requires_grad=False)  # torch's kernels there lose beta's gradient else
        if not averaging or mean is None or var is None or count is None:
            kept = (None, None) if self.training else (mean, var)
            by_batch = self.training or (mean is None and var is None)
            return functional.batch_norm(input, *kept, weight, self.bias, training=by_batch, eps=self.eps)
        # With momentum 1 the kernel leaves the batch's own statistics here: torch would average the unbiased
        # variance. They stay as they are afterwards, because autograd keeps them for the backward pass.
        batch_mean, batch_var = torch.zeros_like(mean), torch.zeros_like(var)
        output = functional.batch_norm(
            input, batch_mean, batch_var, weight, self.bias, training=True, momentum=1.0, eps=self.eps
        )
        n = input.numel() // input.shape[1]
        with torch.no_grad():
            count.add_(1)
            # momentum None is torch's convention for a plain average over all batches.
            share = 1.0 / float(count) if self.momentum is None else self.momentum
            mean.lerp_(batch_mean, share)
            var.lerp_(batch_var * ((n - 1) / n), share)
        return output


def conv(in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> nn.Module:
    """A convolution without bias that keeps the size of the map (up to its stride)."""
    made = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
    return without_overrun(made)


def he_normal_(model: nn.Module) -> None:
    """Draw every linear and convolutional weight from a truncated normal of variance 2/fan-in; zero biases.

    The normal is cut at two standard deviations, as TensorFlow does, and widened so that the variance is
    2/fan-in after the cut: a weight row has squared norm 2 on average.
    """
    two_sigma_variance = 1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2))
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            std = math.sqrt(2 / module.weight[0].numel() / two_sigma_variance)
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def integer(caller: str, **arguments: int) -> None:
    """Refuse what is not a positive integer."""
    for name, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{caller}: {name}={value!r}; give a positive integer.")


def scaled(caller: str, name: str, factor: float, channels: tuple[int, ...]) -> list[int]:
    """``factor`` times each number of channels, rounded, at least 1."""
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < math.inf:
        raise ValueError(f"{caller}: {name}={factor!r}; give a positive, finite number.")
    return [max(1, round(factor * c)) for c in channels]
