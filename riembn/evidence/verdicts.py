"""The one place where a verdict is decided: of a comparison, and of a claim from its comparisons.

A comparison is *better*, *worse*, *equivalent within* a margin, or *undecided*; a claim, which says what its
comparisons should be, is *supported*, *not supported*, *equivalent within* the margin, *mixed*, or *undecided*. What
is asked (mostly: is there a difference?) is corrected by Holm's method for all that is settled in one call, and so,
apart from it, is the other thing that a comparison can show (mostly: that both are equivalent). Each of these two
kinds of verdicts is wrong anywhere with a probability of at most 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from .intervals import LEVEL, Difference, holm, smallest_detectable

BETTER, WORSE, EQUIVALENT, UNDECIDED = "better", "worse", "equivalent", "undecided"
NOT_WORSE, DIFFERENT = "not worse", "different"
NOT_ASKED = "not asked"  # a comparison beside the claim's: described, and not decided
SUPPORTED, CONTRADICTED, MIXED, IN_PART = "supported", "not supported", "mixed", "supported in part"


@dataclass(frozen=True)
class Question:
    """What is asked of a comparison with a baseline.

    Args:
        asks: ``difference``: is one better, and if not, are both equivalent? ``equivalence``: do they differ by less
            than the margin? ``not worse``: is the first worse by less than the margin?
        margin: Differences below it do not matter; in the unit of the value. None: nothing is called equivalent.
        less_is_better: Whether a negative difference is the better one.
        looks: How many times its runs were looked at, each time with more seeds or tries, to decide it; its p-values
            are multiplied by it (Bonferroni), so that it is wrongly decided at any of them with the same probability.
    """

    asks: Literal["difference", "equivalence", "not worse"] = "difference"
    margin: float | None = None
    less_is_better: bool = True
    looks: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.looks, int) or self.looks < 1:
            raise ValueError(f"Question: looks={self.looks!r} is not accepted; give a whole number of 1 or more.")
        if self.margin is None and self.asks != "difference" or (self.margin is not None and self.margin <= 0):
            raise ValueError(
                f"Question: margin={self.margin!r} does not go with asks={self.asks!r}; give a number above 0."
            )

    @property
    def hoped(self) -> str:
        """The verdict that a claim which asks this predicts, unless it says otherwise."""
        return {"difference": BETTER, "equivalence": EQUIVALENT, "not worse": NOT_WORSE}[self.asks]


@dataclass(frozen=True)
class Settled:
    """A comparison's verdict, its corrected p-value, and the smallest difference its design finds in 80 %."""

    verdict: str
    p_holm: float
    detectable: float


def settle(differences: Sequence[Difference], questions: Sequence[Question]) -> list[Settled]:
    """The verdicts of comparisons that are decided together, each by its own question."""
    pairs = [(_less_is_better(d, q), q) for d, q in zip(differences, questions, strict=True)]
    p_values = [[min(1.0, p * q.looks) for p in _p_values(d, q)] for d, q in pairs]
    first = holm([asked for asked, _ in p_values])
    with_margin = [place for place, (_, q) in enumerate(pairs) if q.margin is not None]
    second = dict(zip(with_margin, holm([p_values[place][1] for place in with_margin]), strict=True))
    return [
        Settled(
            _verdict(d, q, first[place], second.get(place, 1.0)),
            first[place],
            smallest_detectable(d.n, d.sd, len(pairs) * q.looks) if math.isfinite(d.low) else math.inf,
        )
        for place, (d, q) in enumerate(pairs)
    ]


def decide(verdicts: Iterable[str], claimed: str = BETTER) -> str:
    """The verdict on a claim that all its comparisons should have a verdict.

    Args:
        verdicts: Those of comparisons, as `compare` and `settle` give them; what was not asked is passed over.
        claimed: What the claim says they are: ``better``, ``worse``, ``equivalent`` or ``not worse``.

    Returns:
        ``supported`` if all are as claimed; ``supported in part`` if some are and the others are undecided; ``mixed``
        if some are and some speak against it; ``not supported`` if some speak against it and none are as claimed;
        ``equivalent within …`` if all are, where a difference was claimed; else ``undecided``.
    """
    return together(answer(verdict, claimed) for verdict in verdicts if verdict != NOT_ASKED)


def answer(verdict: str, claimed: str) -> str:
    """What one comparison says of a claim: supported, not supported, equivalent within …, or undecided."""
    if verdict.startswith(claimed):  # "equivalent" is followed by its margin
        return SUPPORTED
    return verdict if verdict == UNDECIDED or verdict.startswith(EQUIVALENT) else CONTRADICTED


def together(answers: Iterable[str]) -> str:
    """What the answers of a claim's comparisons come to; see `decide`."""
    said = set(answers)
    against = said - {SUPPORTED, UNDECIDED}
    if SUPPORTED in said:
        return MIXED if against else IN_PART if UNDECIDED in said else SUPPORTED
    if CONTRADICTED in said:
        return CONTRADICTED
    # Two margins, or one cell that is equivalent and another of which nothing is known, decide nothing.
    return said.pop() if len(said) == 1 else UNDECIDED


def _less_is_better(d: Difference, question: Question) -> Difference:
    if question.less_is_better:
        return d
    return Difference(d.n, -d.difference, d.sd, -d.high, -d.low, d.p)


def _p_values(d: Difference, question: Question) -> tuple[float, float]:
    """Of what is asked, and of the other thing that can be found: that nothing differs, or that something does."""
    margin = question.margin
    if margin is None:
        return d.p, 1.0
    return {
        "difference": (d.p, d.p_within(margin)),
        "equivalence": (d.p_within(margin), d.p_outside(margin)),
        "not worse": (d.p_below(margin), d.p_above(margin)),
    }[question.asks]


def _verdict(d: Difference, question: Question, asked: float, otherwise: float) -> str:
    equivalent = f"{EQUIVALENT} within {question.margin:g}" if question.margin is not None else UNDECIDED
    found, other = {
        "difference": (BETTER if d.difference < 0 else WORSE, equivalent),
        "equivalence": (equivalent, DIFFERENT),
        "not worse": (NOT_WORSE, WORSE),
    }[question.asks]
    return found if asked < LEVEL else other if otherwise < LEVEL else UNDECIDED
