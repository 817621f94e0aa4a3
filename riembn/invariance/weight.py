"""At which granularity is one weight scale-invariant?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
        with_bias: If it is not, the finest one in which it is together with its bias.
        refusal: Why it does not belong on the manifold, as far as the measurement itself tells.
    """

    candidate: Candidate
    parameter: nn.Parameter
    value: Tensor
    gradient: Tensor | None
    layout: Layout | None = None
    with_bias: Layout | None = None
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
        self.layout = next((g for g in self._layouts() if bool(self._tangent(g).all())), None)
        if self.layout is None and probe.cut:
            # A value was taken out of the graph, so a gradient may deny what rescaling shows.
            whole, *_, finest = reversed(self.candidate.layouts[0].granularities(self.value))
            for self.layout in (finest, whole, None):
                if self.layout is None or probe.change(self.moved(probe)) <= TOLERANCE:
                    break

    def propose_with_bias(self, probe: Probe, gradients: Mapping[str, Tensor]) -> None:
        """Find the finest layout in which weight and bias together are orthogonal to their gradients."""
        layout, name = self.candidate.layouts[0], self.candidate.bias
        if self.refusal or name not in gradients or name is None:
            return
        terms = probe.parameters[name].detach() * gradients[name]
        if terms.shape == (layout.channels(self.value),):
            self.with_bias = next(
                (g for g in layout.granularities(self.value) if self._tangent_with(g, terms)), None
            )

    def moved(self, probe: Probe) -> dict[str, Tensor]:
        """The probe's weight, and the bias if it belongs to it, times a random factor for every vector."""
        layout = self.layout or self.with_bias or self.candidate.layouts[0]
        value = probe.parameters[self.name].detach()
        factors = probe.factors(len(layout.rows(value))).to(value.device)
        values = {self.name: layout.rescaled(value, factors)}
        if self.layout is None and self.candidate.bias is not None:
            bias = probe.parameters[self.candidate.bias].detach()
            values[self.candidate.bias] = bias * factors.repeat_interleave(len(bias) // len(factors))
        return values

    def unfit(self) -> str:
        """Why an invariant weight does not belong on the manifold all the same; empty if it does."""
        if self.layout is None:
            return ""
        if self.layout.rows(self.value).shape[1] == 1:
            return "one entry a vector: a sphere of two points, nothing to learn on it"
        if not bool(self.layout.rows(self.parameter.detach()).any(1).all()):
            return "invariant, but one of its vectors is zero and has no direction"
        return ""

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
            tangent, of = int((self._tangent(layout) & live).sum()), int(live.sum())
            if best * of < tangent < of:
                best, text = tangent / of, f"only {tangent} of its {of} vectors are invariant"
        return text

    def _layouts(self) -> Iterator[Layout]:
        natural, *others = self.candidate.layouts
        for layout in (natural, *(other for other in others if other.channels(self.value) > 1)):
            yield from (g for g in layout.granularities(self.value) if g.channels_per_row is not None)
        yield natural.granularities(self.value)[-1]

    def _tangent(self, layout: Layout) -> Tensor:
        """Which vectors are orthogonal to their gradients, to rounding."""
        return self._product(layout).abs() <= TOLERANCE * self._size(layout) + _SILENT

    def _tangent_with(self, layout: Layout, bias_terms: Tensor) -> bool:
        bias = bias_terms.view(-1, layout.channels_per_row or len(bias_terms))
        total, size = self._product(layout) + bias.sum(1), self._size(layout) + bias.abs().sum(1)
        return bool(bias_terms.any()) and bool((total.abs() <= TOLERANCE * size + _SILENT).all())

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
        return "one vector for the whole tensor"
    return (
        "one vector a channel"
        if layout.channels_per_row == 1
        else f"one for {layout.channels_per_row} channels"
    )
