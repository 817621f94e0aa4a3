"""Decides which weights are scale-invariant: gradients propose, rescaling all of them at once confirms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from riembn.invariance.granularity import SILENT, TOLERANCE, Point, Weight
from riembn.invariance.reasons import Reasons
from riembn.invariance.twin import Edit, Twin, size

LIMIT = 16
"""Most passes through the network."""

# The verdict asks for any factor: large ones, so that what saturates (ReLU6) does, and small ones, because the
# slope of what is saturated is zero again. What eps costs depends on how far scales drift: a factor of four.
_FAR, _HALFWAY, _NEAR = (64.0, 1024.0), (2.0, 16.0), (0.25, 4.0)
_STATES = 6  # random states to look at, for a network that draws random numbers in forward
_GROWTH = 8.0
# An eps that stays may move the output by so much; what is not invariant moves it by more.
_SMALL = 0.01


class Trial:
    """Rescales weights of a twin, and compares its output with what it was.

    Args:
        twin: Runs on its example.
        weights: What is to be decided.

    Attributes:
        outputs: Of every state looked at, with their graphs.
        own_outputs: At the network's own parameters, with its own eps.
        change: Largest relative change of the output when all that passed are rescaled at once.
        own_change: The same with the network's own parameters and eps, for factors of up to four.
        reasons: What every weight meets in the graph, once it is decided.
        random: Whether forward draws random numbers that change the output.
    """

    def __init__(self, twin: Twin, weights: Sequence[Weight]) -> None:
        self.twin, self.weights = twin, weights
        self.outputs: list[list[Tensor]] = []
        self.own_outputs: list[Tensor] = []
        self.reasons = Reasons([], {})
        self.change, self.own_change, self.random = 0.0, 0.0, False
        self._states = [0]
        self._generator = torch.Generator().manual_seed(0)

    def decide(self) -> None:
        """Find the layout, or the refusal, of every weight; `look` comes first."""
        self.reasons = Reasons([t for outputs in self.outputs for t in outputs], self.twin.parameters)
        self._set_unused_apart()
        live = [w for w in self.weights if not w.refusal]
        for weight in live:
            weight.propose()
        self._confirm([w for w in live if w.layout is not None])
        if self.twin.cut or self.reasons.opaque:  # gradients may deny what rescaling shows
            self._try_without_gradients([w for w in live if w.layout is None and not w.refusal])
        if self.reasons.divides or self.reasons.opaque:  # a function of its own may divide where nobody sees it
            self._look_for_eps([w for w in live if w.layout is None and not w.refusal])
        self._look_for_parts([w for w in live if w.layout is None and not w.refusal])
        self.twin.eps, self.twin.generic = True, False
        chosen = [w for w in self.weights if w.layout is not None and not w.unfit()]
        self.own_change = _gap(self.twin.run(self._rescaled(chosen, _NEAR))[0], self.own_outputs)

    def look(self) -> None:
        """Gradients with the network's own eps, and without, in as many random states as it takes to reach all."""
        self.twin.eps, self.twin.generic = True, False
        outputs, own_point = self.twin.run(gradients=True)
        self.own_outputs = [t.detach() for t in outputs]
        del outputs  # with their graph
        self.twin.eps, self.twin.generic = False, True
        self.outputs, self._states = [], [0]
        for weight in self.weights:
            weight.own_point = own_point
            weight.points.clear()
        for state in range(_STATES):
            outputs, point = self.twin.run(state=state, gradients=True)
            self.outputs.append(outputs)
            for weight in self.weights:
                if weight.name in point and (state == 0 or not weight.reached):
                    self._states = sorted({*self._states, state})
            for weight in self.weights:
                weight.points.append(point)
            if state == 1:
                self.random = _gap(outputs, self.outputs[0]) > TOLERANCE
            unreached = not all(w.reached for w in self.weights)
            if not self.twin.draws or (state > 0 and (not self.random or not unreached)):
                return

    def _set_unused_apart(self) -> None:
        unreached = [w for w in self.weights if not w.reached]
        idle = self._without_effect(unreached)
        for weight in unreached:
            if self.random:
                weight.refusal = (
                    f"unused in {len(self.outputs)} random states: forward draws random numbers, and none of "
                    "them led there"
                )
            elif any(weight is i for i, _ in idle):
                weight.refusal = "unused: the output does not depend on it"
            else:
                weight.refusal = "no gradient reaches it: the output changes with it in jumps, if at all"
        # No slope, so look from afar: other numbers, signs included, in place of these.
        silent = [w for w in self.weights if w.reached and w.silent]
        for alike in ([w for w in silent if w.flat], [w for w in silent if not w.flat]):
            for weight, change in self._without_effect(alike):
                if change <= SILENT:
                    weight.refusal = "unused: the output does not change with it on this example"
                else:
                    weight.refusal = (
                        "next to no influence: random numbers in its place move the output by less than "
                        f"{TOLERANCE:.0e} on this example"
                    )

    def _without_effect(self, silent: list[Weight]) -> list[tuple[Weight, float]]:
        """Those that other numbers can replace, and by how much the output moves as several of them are replaced."""
        if not silent or not self._affordable(4):
            return []
        change, _ = self._changed({w.name: self._noise for w in silent})
        if change <= TOLERANCE:
            return [(weight, change) for weight in silent]
        half = len(silent) // 2
        return [*self._without_effect(silent[:half]), *self._without_effect(silent[half:])] if half else []

    def _confirm(self, pending: list[Weight]) -> None:
        """Rescale all that is proposed at once; what the slopes there deny is proposed anew or rejected."""
        if not pending:
            return
        self.change, _ = self._changed(self._rescaled(pending, _FAR))
        if self.change <= TOLERANCE:
            return
        self._require_reproducible()
        ranges = [_FAR, _HALFWAY]
        while pending and ranges and self._affordable(3):
            change, points = self._changed(self._rescaled(pending, ranges[0]), gradients=True)
            if change <= TOLERANCE and ranges[0] == _FAR:
                self.change = change
                return
            before = [(w.layout, w.joint) for w in pending]
            for weight in pending:
                weight.points += points
                weight.propose()
            if before == [(w.layout, w.joint) for w in pending]:
                ranges.pop(0)  # no slope tells at this range
            elif ranges[0] == _HALFWAY:
                ranges.insert(0, _FAR)
            pending = [w for w in pending if w.layout is not None]
        self.change = self._halve(pending, [], TOLERANCE)

    def _try_without_gradients(self, doubtful: list[Weight]) -> None:
        kept = [w for w in self.weights if w.layout is not None]
        for weight in doubtful:
            weight.doubt()
        self.change = max(self.change, self._halve(doubtful, kept, TOLERANCE))
        for weight in doubtful:
            weight.refusal = ""

    def _halve(self, pending: list[Weight], kept: list[Weight], allowed: float) -> float:
        """Reject what changes the output beside what is kept, by halves; the change that the others leave."""
        if not pending:
            return 0.0
        if not self._affordable(1):
            for weight in pending:
                weight.reject("cannot be told apart from weights that are not invariant in 16 passes")
            return 0.0
        change, _ = self._changed(self._rescaled([*kept, *pending], _FAR))
        if change <= allowed:
            return change
        if len(pending) == 1:
            pending[0].reject()
            return 0.0
        half = len(pending) // 2
        left = self._halve(pending[:half], kept, allowed)
        kept = [*kept, *(w for w in pending[:half] if w.layout is not None)]
        return self._halve(pending[half:], kept, allowed) or left

    def _look_for_eps(self, doubtful: list[Weight]) -> None:
        """Weights in front of a normalization with an eps of its own kind: their slope fades as they grow."""
        nearly = [w for w in doubtful if w.reached and w.suspect()]
        if not nearly or not self._affordable(3):
            for weight in nearly:
                weight.reject()
            return
        points = []
        for growth in (_GROWTH, _GROWTH**2):
            points += self._changed(self._rescaled(nearly, (growth, growth)), gradients=True)[1][:1]
        for weight in nearly:
            weight.fading = weight.fades(points, _GROWTH)
            if not weight.fading:
                weight.reject()
        fading = [w for w in nearly if w.fading]
        kept = [w for w in self.weights if w.layout is not None and not w.fading]
        self._halve(fading, kept, _SMALL)

    def _look_for_parts(self, doubtful: list[Weight]) -> None:
        """Weights of which some rows are invariant, confirmed by rescaling those."""
        parted = [w for w in doubtful if w.reached and w.choose_part()]
        if parted and self._affordable(2):
            _, points = self._changed(self._rescaled(parted, _FAR), gradients=True)
            for weight in parted:
                weight.points += points
            parted = [w for w in parted if w.choose_part()]
            if self._changed(self._rescaled(parted, _FAR))[0] <= TOLERANCE:
                return
        for weight in parted:
            weight.part = None

    def _require_reproducible(self) -> None:
        change, _ = self._changed({})
        if change > TOLERANCE:
            raise ValueError(
                "split: the model is not reproducible: evaluated twice on the same example, with the same parameters, "
                f"buffers and random seeds, its output moves by {change:.1e}. Something it keeps elsewhere changes "
                "(a counter, a generator, a clock); hold it fixed while split measures."
            )

    def _rescaled(self, weights: Iterable[Weight], span: tuple[float, float]) -> dict[str, Edit]:
        """Independent factors, log-uniform in the span, for every row.

        Continuous, so that no two of them cancel by chance: a pair of layers that only share a scale cannot
        pass. Powers of two would be free of rounding, but collide.
        """
        low, high = span
        edits: dict[str, Edit] = {}
        for weight in weights:
            uniform = torch.rand(weight.rows, generator=self._generator, dtype=torch.float64)
            edits |= weight.edits(low * (high / low) ** uniform)
        return edits

    def _noise(self, parameter: Tensor) -> None:
        noise = torch.randn(parameter.shape, generator=self._generator, dtype=parameter.dtype)
        parameter.copy_(noise)

    def _changed(self, edits: dict[str, Edit], *, gradients: bool = False) -> tuple[float, list[Point]]:
        """Largest relative change of an output in any of the states, and the gradients there where finite."""
        largest = 0.0
        points: list[Point] = []
        for state in self._states:
            outputs, point = self.twin.run(edits, state=state, gradients=gradients)
            gap = _gap(outputs, self.outputs[state])
            largest = max(largest, gap)
            if gradients and gap < float("inf"):
                points.append(point)
        return largest, points

    def _affordable(self, rounds: int) -> bool:
        return self.twin.passes + rounds * len(self._states) <= LIMIT - 1


@torch.no_grad()
def _gap(moved: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """Largest relative difference of two outputs; infinite where one is not finite or has another shape."""
    if [t.shape for t in moved] != [t.shape for t in reference]:
        return float("inf")
    gaps = [float((a - b).norm() / size(b)) for a, b in zip(moved, reference, strict=True)]
    return max((gap if gap == gap else float("inf") for gap in gaps), default=0.0)
