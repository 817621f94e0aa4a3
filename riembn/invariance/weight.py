"""At which granularity is one weight scale-invariant?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from riembn.invariance.candidates import Candidate, Layout
from riembn.invariance.probe import Probe

__all__ = ["TOLERANCE", "Weight"]

# Relative change of the output that still counts as none. Rounding in float64 leaves 1e-15 to 1e-12 behind a
# hundred layers; a weight that is not scale-invariant moves the output by 1e-3 and more.
TOLERANCE = 1e-8
# Relative influence on the output below which a gradient is rounding and says nothing.
_SILENT = 1e-12


@dataclass
class Weight:
    """A candidate while it is being measured.

    Attributes:
        candidate: Its name, and how its vectors may lie.
        parameter: The caller's own.
        value, gradient: At the probe's parameters; the gradient is None if the output does not depend on it.
        layout: The finest layout in which it is scale-invariant, or None.
        refusal: Why it does not belong on the manifold, as far as the measurement itself tells.
    """

    candidate: Candidate
    parameter: nn.Parameter
    value: Tensor
    gradient: Tensor | None
    layout: Layout | None = None
    refusal: str = ""
    _sums: dict[tuple[Layout, bool], Tensor] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        return self.candidate.name

    def propose(self, probe: Probe) -> None:
        """Find whether the weight has influence, and the finest layout in which its gradient is tangent."""
        if self.gradient is None:
            self.refusal = "unused: the output does not depend on it"
            return
        if float((self.value * self.gradient).abs().sum()) < _SILENT:
            # No slope here, so look from afar: other numbers, signs included, in place of these.
            if probe.change({self.name: probe.noise(self.value)}) <= TOLERANCE:
                self.refusal = "unused: the output does not change with it on this example"
                return
        self._settle(next((g for g in self._layouts() if bool(self._tangent(g).all())), None))

    def propose_by_rescaling(self, probe: Probe) -> None:
        """The same where gradients cannot be trusted, for single channels and for the whole tensor."""
        *_, whole = finest, *_ = self.candidate.layouts[0].granularities(self.value)
        passing = (
            g for g in (finest, whole) if probe.change({self.name: self.rescaled(probe, g)}) <= TOLERANCE
        )
        self._settle(next(passing, None))

    def rescaled(self, probe: Probe, layout: Layout | None = None) -> Tensor:
        """The probe's value of the weight with every vector multiplied by a random factor of its own."""
        layout = layout or self.layout or Layout()
        value = probe.parameters[self.name].detach()
        return layout.rescaled(value, probe.factors(len(layout.rows(value))))

    def slope(self, gradient: Tensor | None, value: Tensor) -> float | None:
        """Largest motion of the output, relative to its size, per unit of log-scale of one vector.

        Of the whole tensor, if it is not invariant.
        """
        if gradient is None:
            return None
        products = value * gradient
        if self.layout is None:
            return abs(float(products.sum()))
        return float(self.layout.rows(products.contiguous()).sum(1).abs().max())

    def partly(self) -> str:
        """A reason if some vectors are invariant: normalized queries and keys in one tensor with values."""
        best, text = 0.0, ""
        for layout in self.candidate.layouts[0].granularities(self.value)[:-1]:
            live = self._size(layout) > _SILENT
            tangent = self._tangent(layout) & live
            share = float(tangent.sum() / live.sum()) if live.any() else 0.0
            if share > best:
                best, text = (
                    share,
                    f"only {int(tangent.sum())} of its {int(live.sum())} vectors are invariant",
                )
        return text

    def jointly(self, bias: Tensor, gradient: Tensor) -> str:
        """A reason if the weight is invariant once its bias is multiplied by the same factors."""
        layout = self.candidate.layouts[0]
        if bias.numel() != layout.channels(self.value) or not bool(gradient.any()):
            return ""
        for g in layout.granularities(self.value):
            size = g.channels_per_row or bias.numel()
            terms = (bias * gradient).view(-1, size)
            total = self._product(g) + terms.sum(1)
            if bool((total.abs() <= TOLERANCE * (self._size(g) + terms.abs().sum(1)) + _SILENT).all()):
                return f"only together with its bias ({describe(g)} a vector)"
        return ""

    def _settle(self, layout: Layout | None) -> None:
        if layout is None:
            return
        if layout.rows(self.value).shape[1] == 1:
            self.refusal = "one entry a vector: a sphere of two points, nothing to learn on it"
        elif not bool(layout.rows(self.parameter.detach()).any(1).all()):
            self.refusal = "invariant, but one of its vectors is zero and has no direction"
        else:
            self.layout = layout

    def _layouts(self) -> Iterator[Layout]:
        for layout in self.candidate.layouts:
            yield from (g for g in layout.granularities(self.value) if g.channels_per_row is not None)
        yield from self.candidate.layouts[0].granularities(self.value)[-1:]

    def _tangent(self, layout: Layout) -> Tensor:
        """Which vectors are orthogonal to their gradients, to rounding."""
        return self._product(layout).abs() <= TOLERANCE * self._size(layout) + _SILENT

    def _product(self, layout: Layout) -> Tensor:
        """⟨w, ∂L/∂w⟩ of every vector."""
        return self._gather(layout, size=False)

    def _size(self, layout: Layout) -> Tensor:
        """The sum of the absolute terms of that product: what it is to be compared with."""
        return self._gather(layout, size=True)

    def _gather(self, layout: Layout, size: bool) -> Tensor:
        assert self.gradient is not None  # an unused weight has its refusal before this is asked
        channel = replace(layout, channels_per_row=1)
        if (channel, size) not in self._sums:
            terms = (self.value * self.gradient).contiguous()
            self._sums[channel, size] = channel.rows(terms.abs() if size else terms).sum(1)
        sums = self._sums[channel, size]
        return sums.view(-1, layout.channels_per_row or len(sums)).sum(1)


def describe(layout: Layout) -> str:
    """What one vector spans, in words."""
    if layout.channels_per_row is None:
        return "the whole tensor"
    return "a channel" if layout.channels_per_row == 1 else f"{layout.channels_per_row} channels"
