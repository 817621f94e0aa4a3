"""SGD-G: momentum on the sphere by geodesic steps, the velocity carried along."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .rows.arithmetic import Along, clipped_tangent, directions, safe_norm
from .rows.base import RowOptimizer
from .rows.lists import Batch


class SGDG(RowOptimizer):
    r"""Stochastic gradient descent on the sphere of each weight row (SGD-G).

    For a weight row :math:`w`, its Euclidean gradient :math:`g` and the last displacement :math:`\tau`:

    .. math::
        y &= w / \|w\|, \qquad h = g - \langle y, g\rangle\, y, \qquad \hat h = h \min(1, \nu / \|h\|) \\
        d &= \gamma \tau - \eta \hat h \\
        w &\leftarrow \exp_y(d), \qquad \tau \leftarrow \Gamma_{y, d}(d)

    where exp is the exponential map of the sphere and :math:`\Gamma_{y,d}` its parallel transport along d.

    Args:
        params: Weights of two or more dimensions, or param groups, or ``split(...).groups()``. Each is a stack
            of weight rows, one an output channel (dim 0) unless its group's ``row_dim``, ``conv_groups``
            and ``channels_per_row`` say otherwise (`riembn.geometry.rows`). A group with ``joint=True`` holds
            weights and their biases in turn, and each row goes on in the entries of the bias. Rows are
            brought to unit norm here, and again at each step.
        lr: Learning rate, in radians per unit slope (loss per radian) of the clipped gradient. A number or a
            one-element tensor.
        momentum: Share of the last displacement that is kept, in [0, 1).
        grad_clip: Largest norm of a weight row's Riemannian gradient, loss per radian; None for no clipping.
            With it no step turns a row by more than ``lr * grad_clip / (1 - momentum)``.
        alpha: Weight of the orthogonality regularizer, whose gradient is added before the projection; costs
            two matrix products a weight.
        foreach: Use the implementation over lists of tensors (True), the loop over tensors (False), or the
            faster one (None).
        fused: Use fused kernels (compiled on a CPU, Triton's on a CUDA device); None takes them where they
            exist. On a CUDA device such a step waits for nothing: it can be captured in a CUDA graph, in which
            ``lr`` can be changed if it is a tensor on the device, and `torch.amp.GradScaler` leaves scaling
            and skipping to it.
        maximize: Ascend along the gradients instead of descending; ``alpha`` still makes rows orthogonal.

    Raises:
        ValueError: For a hyper-parameter out of range, a parameter of fewer than two dimensions, a row that
            is zero or not finite. Nothing is changed then.

    Unlike `torch.optim.SGD`, the learning rate is inside the momentum: after a drop of the rate the
    displacement of the old rate is still carried on and decays as momentum**k. There is no weight decay, which
    has no effect on a direction. A row whose gradient is not finite becomes NaN, and no other row does.
    A row that is set to zero later on has no direction: it stays zero, and so does its momentum.
    ``p.grad`` is never written to. State: ``momentum_buffer``, in the parameter's shape, float32 for
    half-precision weights; those are stored rounded, so small steps are lost: keep float32 master weights.

    Source: Cho and Lee (2017), arXiv:1709.09603, SGD-G, as their TensorFlow release runs it.

    >>> weight = torch.nn.Parameter(torch.randn(8, 4, 3, 3))
    >>> optimizer = SGDG([weight], lr=0.2)
    >>> weight.square().sum().backward()
    >>> _ = optimizer.step()
    >>> weight.detach().flatten(1).norm(dim=1).allclose(torch.ones(8))
    True
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.2,
        *,
        momentum: float = 0.9,
        grad_clip: float | None = 0.1,
        alpha: float = 0.0,
        foreach: bool | None = None,
        fused: bool | None = None,
        maximize: bool = False,
    ) -> None:
        defaults = dict(
            lr=lr,
            momentum=momentum,
            grad_clip=grad_clip,
            alpha=alpha,
            foreach=foreach,
            fused=fused,
            maximize=maximize,
        )
        super().__init__(params, defaults)

    options = ("lr", "momentum", "grad_clip")
    _kernel = "sgd_g"

    def _states(self, group: dict[str, Any], params: list[Tensor]) -> list[list[Tensor]]:
        return [[self._state(p, "momentum_buffer") for p in params]]

    @staticmethod
    def _one(
        w: Tensor,
        g: Tensor,
        tau: Tensor,
        *,
        along: Along,
        lr: float | Tensor,
        momentum: float,
        grad_clip: float | None,
    ) -> None:
        y, dead = directions(w.to(tau.dtype), along)
        h = clipped_tangent(y, g, along, grad_clip)
        d = (momentum * tau - lr * h).masked_fill_(dead, 0)
        angle = safe_norm(d, along)
        cosine, sine = torch.cos(angle), torch.sin(angle)
        w.copy_(cosine * y + torch.sinc(angle / math.pi) * d)  # exp_y(d)
        tau.copy_(cosine * d - angle * sine * y)  # d transported along itself

    @staticmethod
    def _lists(batch: Batch, *, lr: float | Tensor, momentum: float, grad_clip: float | None) -> None:
        (ds,) = batch.states
        _, factor, shrink = batch.tangents(grad_clip)

        # d = momentum * tau - lr * h, in the memory of tau
        torch._foreach_mul_(ds, momentum)
        for d, h, rate in zip(ds, batch.scratch, batch.split(factor.mul_(-lr)), strict=True):
            d.addcmul_(h, rate)

        angle = batch.norms(ds) if grad_clip is not None else batch.safe_norms(ds)
        cosine, sine_ratio = torch.cos(angle), torch.sinc(angle / math.pi)
        fall = torch.sin(angle).mul_(angle).mul_(shrink).neg_()
        batch.turn(ds, cosine * shrink, sine_ratio, fall, cosine)  # exp_y(d); d transported along itself
