"""Every combination of values of some fields, as configurations."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from .config import RunConfig, refuse_idle


def grid(config: RunConfig, **values: Iterable[Any]) -> list[RunConfig]:
    """Every combination of the given values of some fields, the last one varying fastest.

    >>> from riembn import preset
    >>> start = preset("vgg-11/digits/sgd-g")
    >>> [(c.grad_clip, c.seed) for c in grid(start, grad_clip=[0.1, None], seed=range(2))]
    [(0.1, 0), (0.1, 1), (None, 0), (None, 1)]

    Raises:
        ValueError: If a field does not act on the method.
    """
    found = []
    for combination in itertools.product(*values.values()):
        fields = dict(zip(values, combination, strict=True))
        made = config.replace(**fields)
        refuse_idle("grid", made, fields)
        found.append(made)
    return found
