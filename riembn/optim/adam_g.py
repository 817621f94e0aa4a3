"""Adam-G: steps on the sphere by an angle that one second moment a weight row sets."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from ..geometry import Layout
from ..kernels.cpu import bias_correction
from .rows.arithmetic import Along, clipped_tangent, directions, safe_norm
from .rows.base import RowOptimizer
from .rows.lists import Batch
from .rows.loss_scaling import LossScaling

_HOST = torch.device("cpu")


class AdamG(RowOptimizer):
    r"""Adam on the sphere of each weight row, with one second moment a row (Adam-G).

    With :math:`y` and the clipped Riemannian gradient :math:`\hat h` as in `SGDG`, at step t:

    .. math::
        m &\leftarrow \beta_1 m + (1 - \beta_1)\, \hat h, \qquad
        v \leftarrow \beta_2 v + (1 - \beta_2)\, \|\hat h\|^2 \\
        d &= -\eta\, \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t}\, \frac{m}{\sqrt{v + \epsilon}} \\
        w &\leftarrow \exp_y(d), \qquad m \leftarrow \Gamma_{y, d}(m)

    Args:
        params: As for `SGDG`; rows are brought to unit norm here, and again at each step.
        lr: Learning rate, in radians: the first step turns every row by ``lr`` (up to eps), and with the
            default betas no step turns one by more than ``2.35 * lr``.
        betas: Decay rates of the first and the second moment, each in [0, 1).
        eps: Added to the second moment, inside the root, beside the moment that is not yet corrected for its
            start at zero.
        grad_clip: Largest norm of a weight row's Riemannian gradient, loss per radian; None for no clipping.
        alpha: Weight of the orthogonality regularizer, as for `SGDG`.
        foreach: As for `SGDG`.
        fused: As for `SGDG`.
        maximize: As for `SGDG`; the moments are those of the gradients as they are given.

    Raises:
        ValueError: For a hyper-parameter out of range, a parameter of fewer than two dimensions, a row that
            is zero or not finite. Nothing is changed then.

    Unlike `torch.optim.Adam`, v is one number a weight row, not one an entry, so a step does not depend on
    the basis of the input; and eps stands inside the root. Without clipping, a gradient norm above 1.8e19
    overflows v in float32 and stops that row. State: ``exp_avg`` in the parameter's shape, ``exp_avg_sq``
    of shape ``(rows,)``, ``step``. Another optimizer of this name, in the package pytorch_optimizer, is a
    different algorithm.

    Source: Cho and Lee (2017), arXiv:1709.09603, Adam-G, as their TensorFlow release runs it.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.05,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        grad_clip: float | None = 0.1,
        alpha: float = 0.0,
        foreach: bool | None = None,
        fused: bool | None = None,
        maximize: bool = False,
    ) -> None:
        defaults = dict(
            lr=lr,
            betas=betas,
            eps=eps,
            grad_clip=grad_clip,
            alpha=alpha,
            foreach=foreach,
            fused=fused,
            maximize=maximize,
        )
        super().__init__(params, defaults)

    options = ("lr", "betas", "eps", "grad_clip")
    _kernel = "adam_g"

    def _states(self, group: dict[str, Any], params: list[Tensor]) -> list[list[Tensor]]:
        layout = Layout.of(group)
        return [
            [self._state(p, "exp_avg") for p in params],
            [self._row_state(p, "exp_avg_sq", layout) for p in params],
            self._steps(params, group),
        ]

    def _advance(self, states: list[list[Tensor]], scaling: LossScaling) -> None:
        scaling.advance(states[2])

    def _steps(self, params: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """The step counts; on the device where a kernel reads them, else on the host."""
        steps = []
        for p in params:
            device = p.device if p.is_cuda and self._takes_on_device(group, p) else _HOST
            if p.is_cuda and device is _HOST and torch.cuda.is_current_stream_capturing():
                raise RuntimeError(
                    f"AdamG: the steps of a weight of shape {tuple(p.shape)} are counted on the host, and a CUDA graph "
                    "would repeat their bias correction; capture steps that the fused kernels take, or none."
                )
            count = self.state[p].get("step")
            if count is None:
                count = self.state[p]["step"] = torch.zeros((), device=device)
            elif count.device != device or count.dtype != torch.float32:
                # Only towards a device: a copy to the host is read at once, and so has to be waited for.
                moved = count.to(device, torch.float32, non_blocking=device.type == "cuda")
                count = self.state[p]["step"] = moved
            steps.append(count)
        return steps

    @staticmethod
    def _one(
        w: Tensor,
        g: Tensor,
        m: Tensor,
        v: Tensor,
        t: Tensor,
        *,
        along: Along,
        lr: float | Tensor,
        betas: tuple[float, float],
        eps: float,
        grad_clip: float | None,
    ) -> None:
        beta1, beta2 = betas
        y, dead = directions(w.to(m.dtype), along)
        h = clipped_tangent(y, g, along, grad_clip).masked_fill_(dead, 0)
        m.mul_(beta1).add_(h, alpha=1 - beta1).masked_fill_(dead, 0)
        v.mul_(beta2).add_(h.square().sum(along, keepdim=True), alpha=1 - beta2)

        rate = lr * _bias_correction(betas, t) * _rsqrt(v + eps)
        d = -rate * m
        length = safe_norm(m, along)
        angle = rate * length
        cosine, sine = torch.cos(angle), torch.sin(angle)
        w.copy_(cosine * y + torch.sinc(angle / math.pi) * d)  # exp_y(d)
        m.copy_(cosine * m + length * sine * y)  # m transported along d, which points against it

    @staticmethod
    def _lists(
        batch: Batch,
        *,
        lr: float | Tensor,
        betas: tuple[float, float],
        eps: float,
        grad_clip: float | None,
    ) -> None:
        beta1, beta2 = betas
        ms, vs, ts = batch.states
        norm, factor, shrink = batch.tangents(grad_clip)

        v = batch.join(vs).mul_(beta2).add_(norm.mul_(factor).square_(), alpha=1 - beta2)
        torch._foreach_copy_(vs, batch.split(v))
        torch._foreach_mul_(ms, beta1)
        for m, h, share in zip(ms, batch.scratch, batch.split(factor.mul_(1 - beta1)), strict=True):
            m.addcmul_(h, share)

        rate = _rsqrt(v + eps).mul_(lr)
        corrections: list[Any] = [_bias_correction(betas, t) for t in ts]
        torch._foreach_mul_(batch.split(rate), corrections)
        length = batch.norms(ms) if grad_clip is not None else batch.safe_norms(ms)
        angle = rate * length
        cosine, sine_ratio = torch.cos(angle), torch.sinc(angle / math.pi).mul_(-rate)
        rise = torch.sin(angle).mul_(length).mul_(shrink)
        batch.turn(ms, cosine * shrink, sine_ratio, rise, cosine)  # exp_y(d); m transported along d


def _bias_correction(betas: tuple[float, float], step: Tensor) -> float | Tensor:
    if torch.compiler.is_compiling():  # a number would be compiled in, and so compiled anew at each step
        exact = step.double()
        return torch.sqrt(1 - betas[1] ** exact) / (1 - betas[0] ** exact)
    return bias_correction(betas, int(step))


def _rsqrt(x: Tensor) -> Tensor:
    """1/sqrt(x), and 0 at 0: with eps = 0 a row that never had a gradient stays where it is."""
    return torch.where(x > 0, x.rsqrt(), 0)
