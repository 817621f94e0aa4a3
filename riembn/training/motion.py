"""How far weight rows turn in a step, how many are clipped, how long and how orthogonal they are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..geometry import Layout, sphere, weights_of
from ..optim import orthogonality, orthogonality_grad
from ..optim.rows.sharded import whole

PROBES = 8  # steps an epoch at which the motion is measured


def probed_steps(steps: int) -> set[int]:
    """Which of an epoch's steps are measured: `PROBES` of them, evenly spaced, or all if there are fewer."""
    count = min(PROBES, steps)
    return {int((k + 0.5) * steps / count) for k in range(count)}


class Motion:
    """Measures the weight rows of an optimizer's param groups, whichever method moves them.

    Everything is measured on the directions u = w/|w|, so that methods that keep lengths and methods that do
    not compare: of a scale-invariant loss, |w| times the gradient at w is the gradient at u.

    Args:
        groups: Param groups of weights with their layout, as `riembn.Split.groups` gives them.
        grad_clip: Bound whose excess is counted; None counts nothing.
        alpha: Strength of L^O, whose gradient belongs to what is clipped.
    """

    def __init__(self, groups: Iterable[Mapping[str, Any]], *, grad_clip: float | None, alpha: float) -> None:
        self._weights = weights_of(groups)
        self._grad_clip = grad_clip
        self._alpha = alpha
        self._before: list[Tensor] = []
        self.seen: list[dict[str, Tensor]] = []

    @torch.no_grad()
    def before_step(self) -> None:
        """Look at gradients and directions; to be followed by the step and `after_step`."""
        self._before = []
        lengths, exceeded = [], []
        for tensors, layout in self._weights:
            u, norm = self._directions(tensors, layout)
            self._before.append(u)
            grads = [p.grad for p in tensors if p.grad is not None]
            if len(grads) < len(tensors):
                continue
            scaled = layout.rows(*map(whole, grads)) * norm
            if self._alpha:
                scaled = scaled + orthogonality_grad(u, self._alpha)
            length = torch.linalg.vector_norm(sphere.project_tangent(u, scaled), dim=-1)
            lengths.append(length)
            exceeded.append(length > (math.inf if self._grad_clip is None else self._grad_clip))
        self.seen.append(
            {"gradient_norm": torch.cat(lengths), "clipped": torch.cat(exceeded)} if lengths else {}
        )

    @torch.no_grad()
    def after_step(self) -> None:
        """Measure by which angle each row has turned since `before_step`."""
        angles = [
            sphere.distance(before, self._directions(tensors, layout)[0])
            for before, (tensors, layout) in zip(self._before, self._weights, strict=True)
        ]
        if angles:
            self.seen[-1]["angle"] = torch.cat(angles)
        self._before = []

    def motion(self) -> dict[str, float | None]:
        """Mean ``angle``, ``clipped``, ``gradient_norm`` and ``angle_rms`` since the last call; None if unknown.

        A step with a gradient that is not finite does not count: a gradient scaler skips it.
        """
        means: dict[str, float | None] = {}
        taken = [
            step
            for step in self.seen
            if "gradient_norm" not in step or step["gradient_norm"].isfinite().all()
        ]
        for name in ("angle", "clipped", "gradient_norm"):
            found = [step[name].double().mean() for step in taken if name in step]
            means[name] = float(torch.stack(found).mean()) if found else None
        squares = [step["angle"].double().square().mean() for step in taken if "angle" in step]
        means["angle_rms"] = float(torch.stack(squares).mean().sqrt()) if squares else None
        if self._grad_clip is None:
            means["clipped"] = None
        self.seen = []
        return means

    @torch.no_grad()
    def state(self, lr: float, *, unit_free: bool) -> dict[str, float | None]:
        """``weight_norm``, ``effective_lr``, ``orthogonality`` and ``cosine`` of the weights as they are.

        Args:
            lr: The learning rate.
            unit_free: Whether it is already the rate on the unit sphere (every method but plain SGD).
        """
        if not self._weights:
            return dict.fromkeys(("weight_norm", "effective_lr", "orthogonality", "cosine"))
        norms, overlap, pairs = [], torch.zeros((), dtype=torch.float64), 0
        for tensors, layout in self._weights:
            u, norm = self._directions(tensors, layout)
            norms.append(norm.double().flatten())
            overlap += orthogonality(u).double().cpu()
            pairs += len(u) * (len(u) - 1) // 2
        length = torch.cat(norms)
        return {
            "weight_norm": float(length.mean()),
            "effective_lr": lr if unit_free else float((lr / length.square()).mean()),
            "orthogonality": float(overlap),
            "cosine": math.sqrt(float(overlap) / pairs) if pairs else None,
        }

    def _directions(self, tensors: Sequence[Tensor], layout: Layout) -> tuple[Tensor, Tensor]:
        """Unit rows and their norms before, shapes ``(rows, fan_in)`` and ``(rows, 1)``."""
        rows = layout.rows(*(whole(p.detach()) for p in tensors)).float()
        norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        return rows / norm, norm
