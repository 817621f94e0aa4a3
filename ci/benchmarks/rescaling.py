"""Is a split right? Rescale weights one by one, in float64, with normalizations that have no eps at all.

Nothing of `riembn.invariance` computes here: the copy, the normalizations, the rows and the comparison are other ones.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOLERANCE = 1e-8
"""Relative change of the output up to which it counts as unchanged."""

FACTORS = (5.0, 1 / 3, 512.0, 1 / 64)
"""What single rows, and whole tensors, are multiplied by."""

_MOST = 120  # weights of one verdict that are tried
_SINGLE_ROWS = 8  # that are rescaled alone
_CONSTANT = 1e-8  # a deviation smaller than this, beside the values themselves, is rounding


class Rescaling:
    """A float64 copy of a network in training mode, off special values, that can be run with weights rescaled.

    Args:
        model: Left alone.
        example: What it takes.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        self.model = copy.deepcopy(model).double().train()
        self.example = example.double() if example.is_floating_point() else example
        for module in self.model.modules():
            if "drop" in type(module).__name__.lower() or type(module).__name__ == "StochasticDepth":
                module.eval()
            for name in ("eps", "epsilon"):
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 1e-30)  # of a normalization that does not call torch's
        self.parameters = dict(self.model.named_parameters())
        generator = torch.Generator().manual_seed(3)
        for p in self.parameters.values():
            _off_special_values(p.data, generator)
        self._buffers = [(m._buffers, copy.deepcopy(m._buffers)) for m in self.model.modules()]
        self.outputs, self.runs = self._run(), 0
        if not all(bool(t.isfinite().all()) for t in self.outputs):
            raise ValueError("the output is not finite without eps")

    @torch.no_grad()
    def change(self, factors: dict[str, Tensor]) -> float:
        """Largest relative change of an output as each parameter is multiplied by its factors, which broadcast."""
        self.runs += 1
        kept = {name: self.parameters[name].clone() for name in factors}
        try:
            for name, factor in factors.items():
                self.parameters[name].mul_(factor)
            moved = self._run()
        finally:
            for name, value in kept.items():
                self.parameters[name].copy_(value)
        changes = [float((a - b).norm() / b.norm()) for a, b in zip(moved, self.outputs, strict=True)]
        return max(c if math.isfinite(c) else math.inf for c in changes)

    @torch.no_grad()
    def without_effect(self, name: str) -> bool:
        """Whether the output stays as it is when another tensor, of random numbers, takes the parameter's place."""
        p = self.parameters[name]
        kept, noise = p.clone(), torch.randn(p.shape, generator=torch.Generator().manual_seed(5), dtype=p.dtype)
        # Of its own size, as factors change nothing else.
        return self.change({name: noise * kept.std() / torch.where(kept == 0, 1.0, kept)}) <= TOLERANCE

    @torch.no_grad()
    def _run(self) -> list[Tensor]:
        for held, first in self._buffers:
            held.update(copy.deepcopy(first))  # forward may put others in their places
        torch.manual_seed(0)
        with _without_eps():
            return [t.clone() for t in _tensors(self.model(self.example))]


def check(model: nn.Module, example: Tensor, entries: Sequence[Any]) -> dict[str, Any]:
    """Try a split's verdicts on all tensors of two or more dimensions, or on a sample of them.

    A weight on the manifold has all its rows multiplied at once, each by its own factor between 1/1000 and 1000; of
    some weights one row alone, by each of `FACTORS`. If its rows span more than a channel, every channel gets its own
    factor as well, and the output has to change: otherwise the rows are too coarse.

    Any other weight is multiplied as a whole, by `FACTORS` until the output changes, alone and together with its bias.
    If it does, the weight is invariant along no rows, since a common factor is a choice of one for each row.

    Args:
        model: Left alone.
        example: What it takes.
        entries: Of the split.

    Returns:
        How many were tried, the largest and the smallest change, and the names of those that are wrong.
    """
    trial, generator = Rescaling(model, example), torch.Generator().manual_seed(4)
    if trial.change({}) > 0:
        raise ValueError("two passes with the same weights differ")
    matrices = [e for e in entries if e.parameter.dim() > 1]
    on, off = [e for e in matrices if e.invariant], [e for e in matrices if not e.invariant]
    tried, others = _sample(on, generator), _sample(off, generator)
    found: dict[str, Any] = {
        "invariant": {"of": len(on), "tried": len(tried), "rows": sum(e.rows for e in tried), "single_rows": 0},
        "rest": {"of": len(off), "tried": len(others), "silent": 0},
        "wrong": {},
    }
    still, finer = [], []
    for e in tried:
        rows = torch.rand(e.rows, generator=generator, dtype=torch.float64)
        still.append(_judged(found, e, trial.change(_factors(e, 10 ** (6 * rows - 3)))))
        if e.layout.channels_per_row != 1:
            channels = torch.rand(_channels(e), generator=generator, dtype=torch.float64)
            finer.append(trial.change(_factors(e, 10 ** (2 * channels - 1))))
            if finer[-1] < TOLERANCE:
                found["wrong"][e.name] = "its channels are invariant one by one"
    for e in _sample(tried, generator, _SINGLE_ROWS):
        row = int(torch.randint(e.rows, (), generator=generator))
        for factor in FACTORS:
            rows = torch.ones(e.rows, dtype=torch.float64)
            rows[row] = factor
            still.append(_judged(found, e, trial.change(_factors(e, rows))))
        found["invariant"]["single_rows"] += 1
    moved = [m for e in others if (m := _moves(trial, e, found)) is not None]
    found["invariant"] |= {"largest_change": max(still, default=None), "finer_smallest": min(finer, default=None)}
    found["rest"]["smallest_change"] = min(moved, default=None)
    return found | {"runs": trial.runs}


def _judged(found: dict[str, Any], e: Any, change: float) -> float:
    if not change <= TOLERANCE:
        found["wrong"][e.name] = f"on the manifold, but the output moves by {change:.1e} ({e.reason})"
    return change


def _moves(trial: Rescaling, e: Any, found: dict[str, Any]) -> float | None:
    """The least that the output moves, as the weight is multiplied alone or with its bias; None if it is to stay."""
    bias = f"{e.name.removesuffix('weight')}bias"
    together = [(e.name,)] + [(e.name, bias)] * (e.name.endswith("weight") and bias in trial.parameters)
    least = float("inf")
    for names in together:
        change = 0.0
        for factor in FACTORS:
            change = max(change, trial.change({name: torch.tensor(factor) for name in names}))
            if change > TOLERANCE:
                break
        least = min(least, change)
    stays = e.reason.startswith(("one entry a row", "invariant, but", "unused", "empty"))
    if least <= TOLERANCE and not stays and trial.without_effect(e.name):
        found["rest"]["silent"] += 1  # whatever it is; nothing can be told of it
        return None
    if stays == (least > TOLERANCE):
        what = "stays" if least <= TOLERANCE else f"moves by {least:.1e}"
        found["wrong"][e.name] = f"in the rest ({e.reason}), but the output {what}"
    return None if stays else least


def _factors(e: Any, rows: Tensor) -> dict[str, Tensor]:
    """A factor for each row as factors of the tensor, and of its bias if that belongs to the rows."""
    channels, dim, groups = _channels(e), e.layout.row_dim, e.layout.conv_groups
    each = rows.repeat_interleave(channels // len(rows))
    around = (1,) * (e.parameter.dim() - 2)
    if dim == 0:
        weight = each.view(-1, 1, *around)
    else:  # (in, out / groups, …), of which each group of inputs feeds its own outputs
        weight = each.view(groups, -1).repeat_interleave(e.parameter.shape[0] // groups, 0)
        weight = weight.view(*weight.shape, *around)
    return {e.name: weight} | ({e.partner: each} if e.partner else {})


def _channels(e: Any) -> int:
    return e.parameter.shape[0] if e.layout.row_dim == 0 else e.layout.conv_groups * e.parameter.shape[1]


def _sample(entries: Sequence[Any], generator: torch.Generator, most: int = _MOST) -> list[Any]:
    chosen = torch.randperm(len(entries), generator=generator)[:most].sort().values
    return [entries[i] for i in chosen.tolist()]


def _off_special_values(p: Tensor, generator: torch.Generator) -> None:
    """Zeros and constants, at which weights can be invariant by accident, become random numbers."""
    if not p.is_floating_point() or not p.numel():
        return
    if bool((p == p.flatten()[0]).all()) and (p.numel() > 1 or not p.any()):
        spread = torch.rand(p.shape, generator=generator, dtype=p.dtype) + 0.5
        p.copy_(spread if p.dim() < 2 else spread / p[0].numel() ** 0.5)
    elif p.dim() < 2 or not bool(p.all()):
        p.add_(0.05 * torch.rand(p.shape, generator=generator, dtype=p.dtype))


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, dict):
        output = list(output.values())
    return [t for one in output for t in _tensors(one)] if isinstance(output, list | tuple) else []


# --- Normalizations without eps ----------------------------------------------------------------------------


@contextlib.contextmanager
def _without_eps() -> Iterator[None]:
    own = {
        "batch_norm": _batch_norm,
        "instance_norm": _instance_norm,
        "layer_norm": _layer_norm,
        "group_norm": _group_norm,
        "rms_norm": _rms_norm,
        "normalize": _normalize,
    }
    with contextlib.ExitStack() as stack:
        for name, function in own.items():
            stack.enter_context(patch.object(F, name, function))
        stack.enter_context(patch.object(torch, "rms_norm", _rms_norm))
        stack.enter_context(patch.object(Tensor, "float", Tensor.double))
        yield


def _over(x: Tensor, dims: Any, *, centered: bool = True) -> Tensor:
    """(x - mean) / deviation over some dimensions; zero where all values are equal but for rounding."""
    size = x.abs().amax(dims, keepdim=True)
    x = x - x.mean(dims, keepdim=True) if centered else x
    spread = x.square().mean(dims, keepdim=True).sqrt()
    return x / torch.where(spread > _CONSTANT * size, spread, torch.inf)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Sequence[int]) -> Tensor:
    x = x if weight is None else x * weight.view(shape)
    return x if bias is None else x + bias.view(shape)


def _batch_norm(
    input: Tensor, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None,
    training: bool = False, momentum: float = 0.1, eps: float = 0.0,
) -> Tensor:  # fmt: skip
    shape = (1, -1, *(1,) * (input.dim() - 2))
    if training or running_mean is None:
        x = _over(input, [d for d in range(input.dim()) if d != 1])
    else:
        x = (input - running_mean.view(shape)) / (running_var.view(shape) + eps).sqrt()
    return _affine(x, weight, bias, shape)


def _instance_norm(
    input: Tensor, running_mean: Any = None, running_var: Any = None, weight: Any = None, bias: Any = None,
    use_input_stats: bool = True, momentum: float = 0.1, eps: float = 0.0,
) -> Tensor:  # fmt: skip
    assert use_input_stats
    return _affine(_over(input, list(range(2, input.dim()))), weight, bias, (1, -1, *(1,) * (input.dim() - 2)))


def _layer_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 0.0
) -> Tensor:
    return _affine(_over(input, list(range(-len(normalized_shape), 0))), weight, bias, normalized_shape)


def _group_norm(input: Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 0.0) -> Tensor:
    x = _over(input.reshape(len(input), num_groups, -1), -1).view_as(input)
    return _affine(x, weight, bias, (1, -1, *(1,) * (input.dim() - 2)))


def _rms_norm(input: Tensor, normalized_shape: Sequence[int], weight: Any = None, eps: Any = None) -> Tensor:
    dims = list(range(-len(normalized_shape), 0))
    return _affine(_over(input, dims, centered=False), weight, None, normalized_shape)


def _normalize(input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 0.0, out: Any = None) -> Tensor:
    length = torch.linalg.vector_norm(input, p, dim, keepdim=True)
    return input / torch.where(length > 0, length, torch.inf)
