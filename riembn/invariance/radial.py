"""What a gradient says about the length of weight rows: the sums of the terms of ⟨w, ∂L/∂w⟩."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from riembn.geometry import Layout


@dataclass(frozen=True)
class Radial:
    """⟨w, ∂L/∂w⟩ of a parameter, and the sum of its terms' sizes, beside which that is to be seen.

    Attributes:
        total, total_size: Over the whole parameter.
        inner, size: Over each output channel, for every layout with one channel a row; of a 1-D parameter, such
            as a bias, each entry, under None.
    """

    total: float
    total_size: float
    inner: dict[Layout | None, Tensor]
    size: dict[Layout | None, Tensor]

    def __add__(self, other: Radial) -> Radial:
        """Of a gradient that comes in parts; the size is then an upper bound."""
        return Radial(
            self.total + other.total,
            self.total_size + other.total_size,
            {layout: t + other.inner[layout] for layout, t in self.inner.items()},
            {layout: t + other.size[layout] for layout, t in self.size.items()},
        )


def radial(parameter: Tensor, gradient: Tensor, layouts: Iterable[Layout]) -> Radial:
    """The sums for one parameter. ``gradient`` is overwritten, so that large weights need no further memory."""
    if parameter.is_complex():
        return Radial(0.0, float(gradient.abs().sum()), {}, {})
    if gradient.is_sparse:
        gradient = gradient.to_dense()
    terms = gradient.mul_(parameter)
    channels = list(dict.fromkeys(layout._replace(channels_per_row=1) for layout in layouts))
    inner, total = _sums(terms, channels), float(terms.sum())
    size = _sums(terms.abs_(), channels)
    return Radial(total, float(terms.sum()), inner, size)


def _sums(terms: Tensor, channels: Iterable[Layout]) -> dict[Layout | None, Tensor]:
    sums: dict[Layout | None, Tensor] = {}
    for layout in channels:
        view, along = layout.view(terms)
        sums[layout] = view.sum(along).flatten()
    return sums if terms.dim() > 1 else {None: terms.clone()}
