"""The base of the relatives: a method says what one step does to a matrix of weight rows, and nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from ...geometry import Layout, weights_of
from ..rows.checks import CheckedGroups
from ..rows.joint import pairs


class RowMethod(CheckedGroups):
    """An optimizer whose parameters are stacks of weight rows, stepped one tensor at a time.

    A subclass gives `update`, and `prepare` if its rows have to start somewhere else. Param groups are those of
    `riembn.Split.groups`; state is kept in row form, shape ``(rows, fan_in)`` or ``(rows, 1)``, for a weight that
    turns together with its bias under the weight.

    Raises:
        ValueError: For a hyper-parameter out of range; for a parameter that is no float32 or float64 stack of rows,
            lies in parts on several devices, or has a row that is zero or not finite. Nothing is changed then.
    """

    def update(self, w: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """One step: the new rows, from the rows ``w`` and their gradient ``g``, shape ``(rows, fan_in)`` each.

        ``state`` is this weight's, empty before its first step; ``w`` and ``g`` may be views and are not written to.
        """
        raise NotImplementedError

    def prepare(self, w: Tensor, group: dict[str, Any]) -> Tensor:
        """The rows that the method starts from; as they are unless a subclass says otherwise."""
        return w

    def _step(self) -> None:
        for group in self.param_groups:
            for tensors, layout in _weights(group, self):
                if tensors[0].grad is None or not tensors[0].numel():
                    continue
                grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in tensors]
                if any(grad.is_sparse for grad in grads):
                    raise RuntimeError(f"{_name(self)}: a sparse gradient; rows need dense ones (sparse=False).")
                w, g = layout.rows(*tensors), layout.rows(*grads)
                state = self.state[tensors[0]]
                self._check_state(state, w)
                _write(self.update(w, g, state, group), tensors, layout)

    @torch.no_grad()
    def _prepare(self, group: dict[str, Any]) -> None:
        for tensors, layout in _weights(group, self):
            rows = layout.rows(*tensors)
            start = self.prepare(rows, group) if rows.numel() else rows
            if start is not rows:  # else a view would be written to itself, which torch may refuse
                _write(start, tensors, layout)

    def _check(self, group: dict[str, Any]) -> None:
        for tensors, layout in _weights(group, self):
            self._check_rows(tensors, layout)

    def _check_rows(self, tensors: tuple[Tensor, ...], layout: Layout) -> None:
        p = tensors[0]
        shape = tuple(p.shape)
        if p.dim() < 2:
            raise ValueError(
                f"{_name(self)}: a parameter of shape {shape} is no stack of weight rows; give biases and "
                "normalization scales to another optimizer (riembn.build_optimizer does so)."
            )
        if p.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{_name(self)}: a weight of shape {shape} is {p.dtype}, but weights must be float32 or float64; keep "
                "them so and run the network under torch.autocast."
            )
        if hasattr(p, "placements"):
            raise ValueError(
                f"{_name(self)}: a weight of shape {shape} lies in parts on several devices, but rows must be whole; "
                "use riembn.SGDG, AdamG or PSISGD there."
            )
        norms = _norm(layout.rows(*tensors).detach())
        bad = torch.nonzero((norms == 0) | ~norms.isfinite())
        if len(bad):
            row = int(bad[0, 0])
            raise ValueError(
                f"{_name(self)}: row {row} of a weight of shape {shape} has norm {float(norms[row]):g} and so no "
                "direction; reinitialize that row, or leave this parameter to another optimizer."
            )

    def _check_state(self, state: dict[str, Any], w: Tensor) -> None:
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape not in (w.shape, (len(w), 1)):
                raise ValueError(
                    f"{_name(self)}: state {key!r} of shape {tuple(value.shape)} does not fit {len(w)} rows of "
                    f"{w.shape[1]} entries; load state that was saved for these weights."
                )


def unit(x: Tensor) -> Tensor:
    """Each row divided by its norm; a zero row stays zero."""
    return x / _norm(x).clamp_min(torch.finfo(x.dtype).tiny)


def center(x: Tensor) -> Tensor:
    """Each row without its mean."""
    return x - x.mean(1, keepdim=True)


def momentum_direction(
    state: dict[str, Any], g: Tensor, momentum: float, *, nesterov: bool = False
) -> Tensor:
    """What `torch.optim.SGD` multiplies by its rate: the buffer, or the look-ahead from it; the buffer is updated."""
    if not momentum:
        return g
    buffer = state.get("momentum_buffer", torch.zeros_like(g))
    state["momentum_buffer"] = buffer = momentum * buffer + g
    return g + momentum * buffer if nesterov else buffer


def adam_direction(
    state: dict[str, Any], g: Tensor, betas: tuple[float, float], eps: float, *, nesterov: bool = False
) -> Tensor:
    """What `torch.optim.Adam` multiplies by its rate, ``m̂ / (√v̂ + eps)``; both moments are updated."""
    beta1, beta2 = betas
    t = state["step"] = state.get("step", 0) + 1
    zeros = torch.zeros_like(g)
    state["exp_avg"] = m = beta1 * state.get("exp_avg", zeros) + (1 - beta1) * g
    state["exp_avg_sq"] = v = beta2 * state.get("exp_avg_sq", zeros) + (1 - beta2) * g.square()
    if nesterov:
        m = beta1 * m + (1 - beta1) * g
    return m / (1 - beta1**t) / ((v / (1 - beta2**t)).sqrt() + eps)


def _weights(group: dict[str, Any], optimizer: Optimizer) -> list[tuple[tuple[Tensor, ...], Layout]]:
    """As `riembn.geometry.weights_of`, of one group, whose weights and biases have to be pairs with ``joint=True``."""
    if group.get("joint"):
        pairs(group["params"], _name(optimizer))
    return weights_of([group])


def _write(rows: Tensor, tensors: tuple[Tensor, ...], layout: Layout) -> None:
    for p, value in zip(tensors, layout.tensors(rows, *tensors), strict=True):
        p.copy_(value)


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=1, keepdim=True)


def _name(optimizer: Optimizer) -> str:
    return type(optimizer).__name__
