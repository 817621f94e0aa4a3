"""At which granularity is one weight scale-invariant?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product

import torch
from torch import Tensor, nn

from riembn.geometry import Layout
from riembn.invariance.candidates import Candidate
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
        own: The caller's parameters, by name.
        values, gradients: The probe's; a parameter on which the output does not depend has no gradient.
        layout: The finest layout in which it is scale-invariant, or None.
        joint: Whether it is so only together with its bias, whose entries then belong to its vectors.
        refusal: Why it does not belong on the manifold, as far as the measurement itself tells.
    """

    candidate: Candidate
    own: Mapping[str, nn.Parameter]
    values: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]
    layout: Layout | None = None
    joint: bool = False
    refusal: str = ""
    _sums: dict[tuple[Layout, bool, bool], Tensor] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        return self.candidate.name

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that its vectors are made of: it alone, or it and its bias."""
        return (self.name, self.candidate.bias) if self.joint and self.candidate.bias else (self.name,)

    def propose(self, probe: Probe) -> None:
        """Find whether the weight has influence, and the finest layout in which its gradient is tangent.

        Alone if there is one, else together with its bias.
        """
        value, gradient = self.values[self.name].detach(), self.gradients.get(self.name)
        if gradient is None:
            self.refusal = "unused: the output does not depend on it"
            return
        if float((value * gradient).abs().sum()) < _SILENT:
            # No slope here, so look from afar: other numbers, signs included, in place of these.
            if probe.change({self.name: probe.noise(value)}) <= TOLERANCE:
                self.refusal = "unused: the output does not change with it on this example"
                return
        tried = (False, True) if self._bias_counts() else (False,)
        for self.joint in tried:
            self.layout = next((g for g in self._layouts() if bool(self._tangent(g).all())), None)
            if self.layout is not None:
                return
        if probe.cut:
            # A value was taken out of the graph, so a gradient may deny what rescaling shows.
            for joint, layout in product(tried, (self._natural()[0], self._natural()[-1])):
                self.joint, self.layout = joint, layout
                if probe.change(self.moved(probe)) <= TOLERANCE:
                    return
        self.reject()

    def reject(self) -> None:
        """It is not scale-invariant in any layout."""
        self.layout, self.joint = None, False

    def moved(self, probe: Probe) -> dict[str, Tensor]:
        """The probe's weight, and the bias if it belongs to it, times a random factor for every vector."""
        layout = self.layout or self.candidate.layouts[0]
        values = [probe.parameters[name].detach() for name in self.names]
        rows = layout.rows(*values)
        factors = probe.factors(len(rows)).to(rows.device)
        return dict(zip(self.names, layout.tensors(rows * factors[:, None], *values), strict=True))

    def unfit(self) -> str:
        """Why an invariant weight does not belong on the manifold all the same; empty if it does."""
        if self.layout is None:
            return ""
        rows = self.layout.rows(*(self.own[name].detach() for name in self.names))
        if rows.shape[1] == 1:
            return "one entry a vector: a sphere of two points, nothing to learn on it"
        if not bool(rows.any(1).all()):
            return "invariant, but one of its vectors is zero and has no direction"
        return ""

    def slope(self, values: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> float | None:
        """Largest motion of the output, relative to its size, per unit of log-scale of one vector.

        Of the whole tensor, if it is not invariant.
        """
        if not all(name in gradients for name in self.names):
            return None
        products = [(values[name].detach() * gradients[name]).contiguous() for name in self.names]
        if self.layout is None:
            return abs(float(products[0].sum()))
        return float(self.layout.rows(*products).sum(1).abs().max())

    def partly(self) -> str:
        """A reason if some vectors are invariant: normalized queries and keys in one tensor with values."""
        best, text = 0.0, ""
        for joint, layout in product(
            (False, True) if self._bias_counts() else (False,), self._natural()[:-1]
        ):
            live = self._size(layout, joint) > _SILENT
            found = self._tangent(layout, joint) & live
            count, of = int(found.sum()), int(live.sum())
            if best * of < count < of:
                best, channels = count / of, found.repeat_interleave(layout.channels_per_row or 1)
                text = (
                    f"only {count} of its {of} vectors are invariant{' with their bias' if joint else ''} "
                    f"(output channels {_ranges(channels)} of {len(channels)}): split the layer there to use them"
                )
        return text

    def _natural(self) -> list[Layout]:
        return self.candidate.layouts[0].granularities(self.values[self.name])

    def _layouts(self) -> Iterator[Layout]:
        value = self.values[self.name]
        if self.joint:  # a bias has one entry an output channel of its layer, and no other reading
            yield from self._natural()
            return
        natural, *others = self.candidate.layouts
        for layout in (natural, *(other for other in others if other.channels(value) > 1)):
            yield from (g for g in layout.granularities(value) if g.channels_per_row is not None)
        yield natural.granularities(value)[-1]

    def _bias_counts(self) -> bool:
        """Whether there is a bias that can be learned, has an entry a channel, and moves the output."""
        bias = self.candidate.bias
        if bias is None or bias not in self.gradients or bias not in self.own:
            return False
        channels = self.candidate.layouts[0].channels(self.values[self.name])
        return self.values[bias].shape == (channels,) and bool(self.gradients[bias].any())

    def _tangent(self, layout: Layout, joint: bool | None = None) -> Tensor:
        """Which vectors are orthogonal to their gradients, to rounding."""
        joint = self.joint if joint is None else joint
        inner = self._gather(layout, joint, size=False).abs()
        return inner <= TOLERANCE * self._size(layout, joint) + _SILENT

    def _size(self, layout: Layout, joint: bool) -> Tensor:
        """The sum of the absolute terms of ⟨w, ∂L/∂w⟩: what that is to be compared with."""
        return self._gather(layout, joint, size=True)

    def _gather(self, layout: Layout, joint: bool, size: bool) -> Tensor:
        """⟨w, ∂L/∂w⟩ of every vector, or the sum of its absolute terms."""
        channel = layout._replace(channels_per_row=1)
        if (channel, joint, size) not in self._sums:
            names = (self.name, self.candidate.bias) if joint and self.candidate.bias else (self.name,)
            terms = [(self.values[n].detach() * self.gradients[n]).contiguous() for n in names]
            self._sums[channel, joint, size] = channel.rows(*(t.abs() if size else t for t in terms)).sum(1)
        sums = self._sums[channel, joint, size]
        return sums.view(-1, layout.channels_per_row or len(sums)).sum(1)


def _ranges(chosen: Tensor) -> str:
    """The indices that are chosen, as ranges: "0–15, 24–31"."""
    indices = torch.nonzero(chosen).flatten().tolist()
    inside = set(indices)
    starts, ends = ([i for i in indices if i + step not in inside] for step in (-1, 1))
    spans = [f"{a}–{b}" if a < b else f"{a}" for a, b in zip(starts, ends, strict=True)]
    return ", ".join(spans if len(spans) < 5 else [*spans[:3], "…", spans[-1]])
