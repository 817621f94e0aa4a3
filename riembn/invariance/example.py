"""Puts an example into a model, and takes the tensors out of what the model gives."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def mapped(value: Any, f: Callable[[Tensor], Tensor]) -> Any:
    """The same nesting of lists, tuples and dicts with ``f`` applied to every tensor."""
    if isinstance(value, Tensor):
        return f(value)
    if isinstance(value, Mapping):
        return {k: mapped(v, f) for k, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(v, f) for v in value))
    if isinstance(value, list | tuple):
        return type(value)(mapped(v, f) for v in value)
    return value


_FEWEST_SAMPLES, _ENTRIES = 2, 2**17
"""Larger batches tell nothing new. What eps costs needs enough values a channel, of which small images have few; and
two samples, as a pooled channel of one is what its normalization made it, whatever the weights are."""
_OF_A_TOKEN = 64  # an integer stands for a vector


def enough_samples(example: Any) -> int | None:
    """How many of an example's samples do; None for all, as where its tensors differ in their first dimension."""
    found: list[Tensor] = []
    mapped(example, lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    sizes = {tensor.shape[:1] for tensor in found}
    if len(sizes) != 1 or not (samples := math.prod(sizes.pop())):
        return None
    entries = sum(t.numel() * (1 if t.is_floating_point() else _OF_A_TOKEN) for t in found)
    enough = max(_FEWEST_SAMPLES, samples * _ENTRIES // max(entries, 1))
    return enough if enough < samples else None


def more_samples(count: int) -> int | None:
    """How many to take where so many lead nowhere: a few more, for what is normalized over samples alone, then all."""
    return 2 * _FEWEST_SAMPLES if count < 2 * _FEWEST_SAMPLES else None


def first_samples(example: Any, count: int | None) -> Any:
    """The example with so many samples; None leaves it whole."""
    return example if count is None else mapped(example, lambda tensor: tensor[:count])


def arguments(model: nn.Module, given: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How the example goes into forward: spread out where the signature takes it, else as one argument."""
    forward = inspect.signature(model.forward)
    with contextlib.suppress(TypeError):
        if isinstance(given, tuple):
            forward.bind(*given)
            return given, {}
        if isinstance(given, Mapping):
            forward.bind(**given)
            return (), dict(given)
    return (given,), {}


def tensors(value: Any) -> list[Tensor]:
    """Every floating-point or complex tensor of an output, a complex one as its real and imaginary parts."""
    if isinstance(value, Tensor):
        if value.is_complex():
            value = torch.view_as_real(value)
        return [value] if value.is_floating_point() and value.numel() else []
    if isinstance(value, Mapping):
        value = value.values()
    elif hasattr(value, "__dataclass_fields__"):
        value = vars(value).values()
    elif not isinstance(value, Sequence) or isinstance(value, str):
        return []
    return [tensor for item in value for tensor in tensors(item)]


def described(value: Any) -> str:
    """An example in words: "a float32 tensor of shape (8, 3, 32, 32)"."""
    if isinstance(value, Tensor):
        return _with_article(f"{str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}")
    if isinstance(value, list | tuple):
        items = ", ".join(map(described, value)) if len(value) < 4 else f"{len(value)} items"
        return f"a {type(value).__name__} of {items}"
    if isinstance(value, Mapping):
        return f"a dict with {', '.join(map(repr, value))}"
    return _with_article(type(value).__name__)


def slip(model: nn.Module, given: Any) -> str:
    """What is likely wrong with an example on which a model fails, and what to do; empty if nothing is known."""
    if type(given).__module__.partition(".")[0] == "numpy":
        return "an array is no tensor: give torch.from_numpy(example_input)"
    if isinstance(given, list | tuple) and given and all(type(size) is int for size in given):
        return f"a shape is no example: give torch.randn({', '.join(map(str, given))})"
    if isinstance(given, torch.utils.data.DataLoader):
        return "give one batch of inputs: next(iter(loader))[0]"
    if isinstance(given, list | tuple) and len(given) == 2 and all(isinstance(g, Tensor) for g in given):
        takes_one = False
        try:
            inspect.signature(model.forward).bind(*given)
        except TypeError:
            takes_one = True
        if takes_one or not given[1].is_floating_point():
            return "a batch of a DataLoader is (inputs, targets): give its first item"
    if isinstance(given, Tensor) and given.is_meta:
        return "a tensor on the meta device holds no numbers: give a real one"
    if isinstance(given, Tensor) and given.dtype == torch.uint8:
        return "give floating-point images: example_input.float() / 255"
    return ""


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
