"""Sets a model, and the random numbers that it draws, back to the same state before each evaluation."""

from __future__ import annotations

import contextlib
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from riembn.invariance.copying import CONTAINERS, TORCHS_OWN, copied_state
from riembn.invariance.exact import TINY

EPS_NAMES = ("eps", "epsilon", "variance_epsilon", "layer_norm_eps")
"""Attributes in which modules keep their eps."""

_STATE = (*CONTAINERS, Tensor, torch.Generator, random.Random)


class State:
    """What a pass may leave behind in a model, and how to set it back: buffers, attributes, generators, eps."""

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        # Modules and parameters are no state of their own: they stay the objects that they are.
        self._fixed = {id(kept): kept for kept in (*modules, *model.parameters())}
        self._modules = [
            (
                vars(module),
                dict(module._parameters),
                {k: v for k, v in vars(module).items() if k not in TORCHS_OWN},
                {k: b for k, b in module._buffers.items() if b is not None},
            )
            for module in modules
        ]
        kept = [({k: v for k, v in a.items() if isinstance(v, _STATE)}, b) for _, _, a, b in self._modules]
        self._content = copied_state(kept, self._fixed)
        self._before: list[tuple[Any, Any]] = []

    def restore(self, state: int, *, eps: bool) -> None:
        """Set the model back to its first state; a ``state`` other than 0 seeds its own generators by it."""
        self._before = []
        fresh = copied_state(self._content, self._fixed)
        for (held, parameters, attributes, _), (contents, buffers) in zip(self._modules, fresh, strict=True):
            for key in [k for k in held if k not in attributes and k not in TORCHS_OWN]:
                del held[key]
            for key, value in attributes.items():
                held[key] = _refilled(value, contents[key]) if key in contents else value
                if key in EPS_NAMES and isinstance(value, float) and not eps:
                    held[key] = TINY
                if isinstance(value, torch.Generator | random.Random):
                    if state:
                        _generator_seed(held[key], state)
                    self._before.append((held[key], _generator_state(held[key])))
            held["_parameters"].update(parameters)
            held["_buffers"].update(buffers)

    def drew(self) -> bool:
        """Whether a generator of the model's own was used since."""
        return any(_generator_state(generator) != before for generator, before in self._before)


def _refilled(kept: Any, content: Any) -> Any:
    """The container kept, with its first content again: a hook may hold the same one. Of other kinds the content."""
    if isinstance(kept, list):
        kept[:] = content
    elif isinstance(kept, deque):
        kept.clear()
        kept.extend(content)
    elif isinstance(kept, dict | set):
        kept.clear()
        kept.update(content)
    else:
        return content
    return kept


def _generator_state(generator: Any) -> Any:
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state().tolist()


def _generator_seed(generator: Any, seed: int) -> None:
    generator.seed(seed) if isinstance(generator, random.Random) else generator.manual_seed(seed)


@contextlib.contextmanager
def random_state(model: nn.Module, seed: int) -> Iterator[Callable[[], bool]]:
    """The same random numbers for the same seed; then the caller's own state again.

    Gives a function that tells, once the context has ended, whether any were drawn in it.
    """
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    python_state, drawn = random.getstate(), [False]
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy else None

    def states() -> list[Any]:
        found: list[Any] = [torch.default_generator.get_state().tolist(), random.getstate()]
        found += [torch.cuda.default_generators[d].get_state().tolist() for d in devices]
        return [*found, numpy.random.get_state()[2]] if numpy else found

    try:
        with torch.random.fork_rng(devices=devices):
            torch.default_generator.manual_seed(seed)
            for device in devices:
                torch.cuda.default_generators[device].manual_seed(seed)
            random.seed(seed)
            if numpy:
                numpy.random.seed(seed)
            before = states()
            yield lambda: drawn[0]
            drawn[0] = states() != before
    finally:
        random.setstate(python_state)
        if numpy:
            numpy.random.set_state(numpy_state)
