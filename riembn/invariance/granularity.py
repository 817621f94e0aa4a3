"""Finds the granularity at which one weight is scale-invariant."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from riembn.geometry import Layout
from riembn.invariance.candidates import Candidate
from riembn.invariance.radial import Radial
from riembn.invariance.twin import Edit

# Relative change of the output that still counts as none. Rounding in float64 leaves 1e-15 to 1e-12 behind a
# hundred layers; a weight that is not scale-invariant moves the output by 1e-3 and more.
TOLERANCE = 1e-8
# Relative influence on the output below which a gradient is rounding and says nothing.
SILENT = 1e-12
# Below it, rounding hides what a single row does, and no row tells that it is invariant.
_FAINT = 5e-11
# Rows whose slopes are a smaller part than this of what chance would leave may be held up by an eps alone.
_NEARLY = 0.02
# A smaller part of a weight's rows that is invariant is so by accident of the example.
_A_PART = 0.1

Point = Mapping[str, Radial]
"""What the gradients say at one setting of all parameters, by name."""


@dataclass
class Weight:
    """A candidate while it is being measured.

    Attributes:
        candidate: Its name, and how its rows may lie.
        own: The caller's parameters, by name.
        own_point: What the gradients say at the network's own parameters and eps.
        points: What they say elsewhere; it is scale-invariant in a layout only if it is so at every point.
        layout: The finest layout in which it is scale-invariant, or None.
        joint: Whether it is so only together with its bias, whose entries then belong to its rows.
        refusal: Why it does not belong on the manifold, as far as the measurement itself tells.
        part: The rows that are scale-invariant, if only some are.
        fading: Whether it is so but for an eps that is not known as one: its slope fades as it grows.
    """

    candidate: Candidate
    own: Mapping[str, nn.Parameter]
    own_point: Point = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    layout: Layout | None = None
    joint: bool = False
    refusal: str = ""
    part: Part | None = None
    fading: bool = False

    @property
    def name(self) -> str:
        return self.candidate.name

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that its rows are made of: it alone, or it and its bias."""
        return (self.name, self.candidate.bias) if self.joint and self.candidate.bias else (self.name,)

    @property
    def reached(self) -> bool:
        """Whether the output depends on it at any point."""
        return any(self.name in point for point in self.points)

    @property
    def silent(self) -> bool:
        """Whether it has no slope at any point, to rounding; with an eps, rows of one entry have one as well."""
        points = (self.own_point, *self.points)
        return all(p[self.name].total_size < _FAINT for p in points if self.name in p)

    @property
    def flat(self) -> bool:
        """Whether there is no slope without an eps, as in rows of one entry: rescaling alone tells of those."""
        return all(p[self.name].total_size < SILENT for p in self.points if self.name in p)

    def propose(self) -> None:
        """Choose the finest layout in which the gradient is tangent at every point, and large enough to tell."""
        flat = self.flat
        self._choose(
            lambda layout, joint: bool(self._tangent(layout, joint).all()) and (flat or self._tells(layout, joint))
        )

    def reject(self, refusal: str = "") -> None:
        """It is not scale-invariant in any layout."""
        self.layout, self.joint, self.fading, self.refusal = None, False, False, refusal

    def doubt(self) -> None:
        """Suppose one row an output channel, whatever the gradient says."""
        self.layout, self.joint = self._natural()[0], False

    def suspect(self) -> bool:
        """Choose the finest layout in which the gradient is nearly tangent, as an eps leaves it; tell if there is."""

        def nearly(layout: Layout, joint: bool) -> bool:
            inner, size = self._sums(self.points[0], layout, joint)
            # Terms of random signs would leave one part in the root of their number, or thereabouts.
            by_chance = float(size.norm()) / (self.own[self.name].numel() / len(size)) ** 0.5
            return float(inner.norm()) <= _NEARLY * by_chance

        self._choose(nearly)
        return self.layout is not None

    def fades(self, points: Sequence[Point], growth: float) -> bool:
        """Whether every row's slope along it fades from point to point, by its growth or the square of that.

        All in all by no more than a power of it: where a softmax saturates, slopes fade exponentially. Across the row
        the slope stays, or the output does not depend on it any longer.
        """
        if self.layout is None or len(points) < 2:
            return False
        first, *later = (self._sums(p, self.layout, self.joint) for p in (self.points[0], *points))
        for inner, size in later:
            # Half of the growth, because an eps beside a small variance fades slower at first.
            fades = inner <= first[0] * 2 / growth + TOLERANCE * size + SILENT
            stays = size >= first[1] / growth - SILENT
            # Squared once more, because the variance grows with weights further in front, too.
            slowly = inner.norm() >= first[0].norm() / growth**4 - SILENT * (1 + size.norm())
            if not bool((fades & stays).all() & slowly):
                return False
            first = inner, size
        return True

    def edits(self, factors: Tensor) -> dict[str, Edit]:
        """Multiplies each row, and its entries of the bias if that belongs to it, by its own factor.

        Of a weight that is invariant in part, only the rows of that part.
        """
        layout, names = self.layout or self.candidate.layouts[0], self.names
        if self.part is not None:
            layout, factors = self.part.layout, torch.where(self.part.found.cpu(), factors, torch.ones_like(factors))
            names = (self.name, self.candidate.bias) if self.part.joint and self.candidate.bias else (self.name,)
        return rescaling(names, layout, factors)

    @property
    def rows(self) -> int:
        """How many rows the weight has in its layout, or in that of its part."""
        layout = self.part.layout if self.part else self.layout or self.candidate.layouts[0]
        return layout.row_count(self.own[self.name])

    def unfit(self) -> str:
        """Why an invariant weight does not belong on the manifold all the same; empty if it does."""
        if self.layout is None:
            return ""
        rows = self.layout.rows(*(self.own[name].detach() for name in self.names))
        if rows.shape[1] == 1:
            return "one entry a row: a sphere of two points, nothing to learn on it"
        if not bool(rows.any(1).all()):
            return "invariant, but one of its rows is zero and has no direction"
        return ""

    def slope(self, *, own: bool = False) -> float | None:
        """Largest motion of the output, relative to its size, per unit of log-scale of one row.

        Of the whole tensor, if it is not invariant. None if the output does not depend on it.

        Args:
            own: At the network's own parameters, with its own eps.
        """
        point = self.own_point if own else self.points[0]
        if not all(name in point for name in self.names):
            return None
        if self.layout is None:
            return abs(point[self.name].total)
        return float(self._sums(point, self.layout, self.joint)[0].max())

    def choose_part(self) -> bool:
        """Find the layout in which most rows are invariant, though not all; tell if there is one.

        Normalized queries and keys in one tensor with values are such a part.
        """
        best, self.part = _A_PART, None
        for joint in (False, True) if self._bias_counts() else (False,):
            for layout in self._natural()[:-1]:
                live = self._sums(self.points[0], layout, joint)[1] > _FAINT
                found = self._tangent(layout, joint) & live
                count, of = int(found.sum()), int(live.sum())
                if best * of < count < of:
                    best, self.part = count / of, Part(layout, joint, found, of)
        return self.part is not None

    def _choose(self, fits: Callable[[Layout, bool], bool]) -> None:
        """Take the first layout that fits, of the weight alone if there is one, else together with its bias."""
        for joint in (False, True) if self._bias_counts() else (False,):
            for layout in self._layouts(joint):
                if fits(layout, joint):
                    self.layout, self.joint = layout, joint
                    return
        self.reject()

    def _natural(self) -> list[Layout]:
        return self.candidate.layouts[0].granularities(self.own[self.name])

    def _layouts(self, joint: bool) -> Iterator[Layout]:
        value = self.own[self.name]
        if joint:  # a bias has one entry an output channel of its layer, and no other reading
            yield from self._natural()
            return
        natural, *others = self.candidate.layouts
        for layout in (natural, *(other for other in others if other.channels(value) > 1)):
            yield from (g for g in layout.granularities(value) if g.channels_per_row is not None)
        yield natural.granularities(value)[-1]

    def _bias_counts(self) -> bool:
        """Whether there is a bias that can be learned, has an entry a channel, and moves the output."""
        bias = self.candidate.bias
        if bias is None or bias not in self.own or not self.own[bias].requires_grad:
            return False
        channels = self.candidate.layouts[0].channels(self.own[self.name])
        return self.own[bias].shape == (channels,) and any(p[bias].total_size for p in self.points if bias in p)

    def _tangent(self, layout: Layout, joint: bool) -> Tensor:
        """Which rows are orthogonal to their gradients at every point, to rounding."""
        held = []
        for point in self.points:
            if self.name in point:
                inner, size = self._sums(point, layout, joint)
                held.append(inner <= TOLERANCE * size + SILENT)
        return torch.stack(held).all(0)

    def _tells(self, layout: Layout, joint: bool) -> bool:
        """Whether any row moves the output by more than rounding: of others, every gradient seems tangent."""
        return any(bool((self._sums(p, layout, joint)[1] > _FAINT).any()) for p in self.points if self.name in p)

    def _sums(self, point: Point, layout: Layout, joint: bool) -> tuple[Tensor, Tensor]:
        """|⟨w, ∂L/∂w⟩| of every row, and the sum of the sizes of its terms, beside which it is to be seen."""
        channel = layout._replace(channels_per_row=1)
        inner, size = point[self.name].inner[channel], point[self.name].size[channel]
        bias = point.get(self.candidate.bias or "") if joint else None
        if bias is not None:
            inner, size = inner + bias.inner[None], size + bias.size[None]
        inner, size = (t.view(-1, layout.channels_per_row or len(t)).sum(1) for t in (inner, size))
        return inner.abs(), size


def rescaling(names: Sequence[str], layout: Layout, factors: Tensor) -> dict[str, Edit]:
    """Multiplies each row of a weight, and its entries of the bias if that is named as well, by its own factor."""

    def rescale(weight: Tensor) -> None:
        view, along = layout.view(weight)
        shape = [1 if d in along else n for d, n in enumerate(view.shape)]
        view.mul_(factors.to(weight.device).view(shape))

    def rescale_bias(bias: Tensor) -> None:
        bias.mul_(factors.to(bias.device).repeat_interleave(len(bias) // len(factors)))

    return dict(zip(names, (rescale, rescale_bias), strict=False))


@dataclass(frozen=True)
class Part:
    """Some of a weight's rows that are invariant: which of those in a layout, out of how many that count."""

    layout: Layout
    joint: bool
    found: Tensor
    of: int

    def __str__(self) -> str:
        channels = self.found.repeat_interleave(self.layout.channels_per_row or 1)
        return (
            f"only {int(self.found.sum())} of its {self.of} rows are invariant{' with their bias' * self.joint} "
            f"(output channels {_ranges(channels)} of {len(channels)}): split the layer there to use them"
        )


def _ranges(chosen: Tensor) -> str:
    """The indices that are chosen, as ranges: "0–15, 24–31"."""
    indices = torch.nonzero(chosen).flatten().tolist()
    inside = set(indices)
    starts, ends = ([i for i in indices if i + step not in inside] for step in (-1, 1))
    spans = [f"{a}–{b}" if a < b else f"{a}" for a, b in zip(starts, ends, strict=True)]
    return ", ".join(spans if len(spans) < 5 else [*spans[:3], "…", spans[-1]])
