"""What the records say of each claim: supported, not supported, equivalent within a margin, undecided, or not tested.

The claims are in their sources' words as far as these can be tested. All comparisons that decide one of them are
settled together, so that the correction is that of the whole ledger (see `verdicts`). Claims about single steps or
about the space itself are identities: they are proved in a chapter, and a test checks them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import pandas

from .intervals import Difference, difference, spelled
from .pairs import AT_EDGE
from .rules import (
    ANGLE,
    DISAGREEMENT,
    LOSS,
    POINTS,
    Comparison,
    Rule,
    ablated,
    lower_loss,
    lower_test_error,
    other_lengths,
    plateaus,
    rate_control,
)
from .settings import cells, prepare
from .verdicts import MIXED, SUPPORTED, UNDECIDED, Settled, answer, settle, together

PLANNED = 10  # seeds, at most; a comparison with more was looked at before, with some of them
# How often comparisons were made that have no more seeds than planned, or more than two looks behind them; by what is
# in their names, and their cell. SGD-G's of block L were made with four of the six seeds; those of methods and SGD in
# block A (and A0, to be safe) with five rates and before their last tries; all of block B when rates alone had been
# tuned, with six seeds, and twice before their last tries.
LOOKED_AT = {
    ("SGD-G at rate", "vgg-13 × 1 on cifar10-jpeg, 16 epochs"): 2,
    (" minus SGD at rate", "vgg-11 × 0.125 on fashion-mnist (10,000 images), 12 epochs"): 3,
    ("", "vgg-11 × 0.125 on cifar10-jpeg (10,000 images), 12 epochs"): 5,
}
PROVED, PROVED_IN_PART = "proved", "proved in part"
NOT_TESTED = "not tested by these records"
HOW = (
    "corrected together by Holm's method at 5 %. Intervals are Student's, 95 % each for itself, over seeds alone: all "
    "runs of a cell have the same images. A difference of the size after “could find” is found with a probability of "
    f"80 %, corrected alike. P-values count each look that was taken before: two where there are more than {PLANNED} "
    "seeds, and for SGD-G on VGG-13 (four of its six seeds); three for methods beside SGD in the cell on Fashion-MNIST "
    "(five rates, and before the last settings were tried); five on color images (rates alone, six seeds, twice before "
    "the last settings). "
    f"Equivalent is what differs by less than {POINTS:g} points of error, {LOSS:g} of loss, "
    f"{100 * ANGLE:g} % of an angle or {DISAGREEMENT:g} point of disagreement."
)
"""How the verdicts of `judge` are to be read."""


@dataclass(frozen=True)
class Claim:
    """A claim, who makes it, and the rule that finds in the runs of a cell what speaks for or against it.

    Args:
        text: In the source's words where they say something that can be tested.
        source: Where it stands.
        rule: Gives the comparisons of one cell.
        proof: The chapter that proves it, or what of it is an identity.
        test: The test that checks it, as ``file::name`` in ``ci/tests``.
    """

    text: str
    source: str
    rule: Rule | None = None
    proof: str = ""
    test: str = ""


@dataclass(frozen=True)
class Finding:
    """One comparison, what it gives over the seeds, and what follows for the claim; it may not be what decides."""

    comparison: Comparison
    found: Difference
    settled: Settled | None = None

    @property
    def answer(self) -> str:
        """What this says of the claim; nothing if it does not decide."""
        return answer(self.settled.verdict, self.comparison.question.hoped) if self.settled else ""

    def __str__(self) -> str:
        c, d = self.comparison, self.found
        numbers = spelled(d.difference, d.low, d.high)
        what = ", ".join(filter(None, [c.where, c.at]))
        said = "not counted"
        if self.settled:
            s = self.settled
            said = f"{self.answer} (p = {s.p_holm:.2g} after correction; could find {s.detectable:.2g})"
        return f"{what}: {' '.join(filter(None, [numbers, c.unit]))}, n = {d.n}: {said}"


@dataclass(frozen=True)
class Verdict:
    """What the records say of a claim, and by which comparisons.

    Args:
        key: Of the claim in `CLAIMS`.
        claim: What it says.
        source: Who says so.
        verdict: supported, supported in part, mixed, not supported, equivalent within …, undecided, proved, proved in
            part, or not tested by these records.
        at: How the settings of the deciding runs were chosen: *tuned*, *at preset rates*, …; empty of an identity.
        findings: The comparisons, those that decide first.
        notes: Why others were not made; of an identity what proves and tests it.
    """

    key: str
    claim: str
    source: str
    verdict: str
    at: str = ""
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def deciding(self) -> tuple[Finding, ...]:
        """The findings that the verdict follows from."""
        return tuple(finding for finding in self.findings if finding.settled)

    @property
    def say_so(self) -> str:
        """How many of the comparisons that decide say what the verdict says; where it is mixed, how many each way."""
        answers = [finding.answer for finding in self.deciding]
        if not answers:
            return "–"
        if self.verdict == MIXED:
            favor, undecided = answers.count(SUPPORTED), answers.count(UNDECIDED)
            return f"{favor} for, {len(answers) - favor - undecided} not, of {len(answers)}"
        return f"{answers.count(self.verdict.removesuffix(' in part'))} of {len(answers)}"

    @property
    def headline(self) -> str:
        """The verdict in one line: what, at which settings, and by how many comparisons."""
        answers = sorted((finding.answer for finding in self.deciding), key=lambda answer: answer == "undecided")
        counts = ", ".join(f"{answers.count(a)} {a}" for a in dict.fromkeys(answers))
        if len(set(answers)) == 1:
            counts = "1 comparison" if len(answers) == 1 else f"{len(answers)} comparisons"
        said = ", ".join(filter(None, [self.verdict.upper(), self.at]))
        return said + (f" ({counts})" if counts else "")


def judge(frame: pandas.DataFrame) -> list[Verdict]:
    """What tidy records, as `riembn.Store.frame` gives them, say of every claim in `CLAIMS`.

    Runs of methods that no claim is about are passed over. Where tuned runs test a claim they decide, and runs at
    preset rates are shown beside them.
    """
    runs = prepare(frame)
    alike = list(cells(runs)) if len(runs) else []
    heard = {key: _hear(claim, alike) for key, claim in CLAIMS.items()}
    deciding = [c for comparisons, _ in heard.values() for c in comparisons if _decides(c, comparisons)]
    questions = [replace(c.question, looks=_looks(c)) for c in deciding]
    settled = settle([difference(c.values, c.baseline) for c in deciding], questions)
    by_comparison = dict(zip(map(id, deciding), settled, strict=True))
    verdicts = []
    for key, (comparisons, notes) in heard.items():
        findings = [Finding(c, difference(c.values, c.baseline), by_comparison.get(id(c))) for c in comparisons]
        findings.sort(key=lambda finding: finding.settled is None)
        verdicts.append(_verdict(key, findings, notes))
    return verdicts


def _hear(
    claim: Claim, alike: Sequence[tuple[str, pandas.DataFrame]]
) -> tuple[list[Comparison], list[str]]:
    """The comparisons that a claim's rule finds in all cells, and why it finds none in others."""
    found = [one for where, runs in alike for one in claim.rule(runs, where)] if claim.rule else []
    notes = [one for one in found if isinstance(one, str)]
    return [one for one in found if isinstance(one, Comparison)], _merged(notes)


def _merged(notes: Sequence[str]) -> list[str]:
    """One note a reason."""
    reasons: dict[str, list[str]] = {}
    for note in dict.fromkeys(notes):
        where, _, reason = note.rpartition(": ")
        reasons.setdefault(reason, []).append(where)
    more = {reason: f" (and {len(where) - 1} more)" if len(where) > 1 else "" for reason, where in reasons.items()}
    return [f"{where[0]}{more[reason]}: {reason}" for reason, where in reasons.items()]


def _decides(one: Comparison, all_of_claim: Sequence[Comparison]) -> bool:
    return one.rank >= 0 and one.rank == max(c.rank for c in all_of_claim if c.part == one.part)


def _looks(one: Comparison) -> int:
    """How many times a comparison was made, each time with more runs."""
    known = [n for (what, cell), n in LOOKED_AT.items() if what in one.where and cell in one.where]
    return max(known, default=2 if len(one.values) > PLANNED else 1)


def _settings(all_of_claim: Iterable[str]) -> str:
    """How the settings of several comparisons were chosen, each way once."""
    ways = list(dict.fromkeys(filter(None, all_of_claim)))
    plain = dict.fromkeys(way.removesuffix(AT_EDGE) for way in ways)
    if len(plain) == len(ways):
        return "; ".join(ways)
    return "; ".join(plain) + AT_EDGE.replace("the best", "some best")


def _verdict(key: str, findings: Sequence[Finding], notes: Sequence[str]) -> Verdict:
    claim = CLAIMS[key]
    deciding = [finding for finding in findings if finding.settled]
    at = _settings(finding.comparison.at for finding in deciding)
    if claim.proof:
        notes = [f"proved in {claim.proof}, and tested by ci/tests/{claim.test}", *notes]
    if deciding:
        said = together(finding.answer for finding in deciding)
    elif claim.proof:
        said = PROVED_IN_PART if claim.rule else PROVED
    else:
        said = NOT_TESTED
    return Verdict(key, claim.text, claim.source, said, at, tuple(findings), tuple(notes))


_CHO, _YI = "Cho and Lee 2017", "Yi 2022"

CLAIMS: dict[str, Claim] = {
    "C1": Claim(
        "SGD-G ends with a lower test error than SGD.",
        f"{_CHO}, abstract",
        lower_test_error("sgd-g"),
    ),
    "C2": Claim(
        "Adam-G ends with a lower test error than SGD.",
        f"{_CHO}, abstract",
        lower_test_error("adam-g"),
    ),
    "C3": Claim(
        "SGD-G and Adam-G “achieve lower training loss than baseline SGD”: early, and at the end.",
        f"{_CHO}, poster",
        lower_loss("sgd-g", "adam-g"),
    ),
    "C4": Claim(
        "SGD-G and Adam-G “suffer less from a plateau after each learning rate drop”.",
        f"{_CHO}, poster (the measure, on the training loss, is ours)",
        plateaus,
    ),
    "C5": Claim(
        "“Gradient clipping is necessary”, and ν = 0.1 is near the best value.",
        f"{_CHO}, poster; the value is the release's",
        ablated("grad_clip", 0.1, math.inf, "ν"),
    ),
    "C6": Claim(
        "The orthogonality regularizer lowers the test error, and α = 0.1 is near the best value.",
        f"{_CHO}, abstract: regularization is effective; the value is the release's",
        ablated("alpha", 0.1, 0.0, "α"),
    ),
    "C7": Claim(
        "“Two networks, with the same forward pass but different weight scaling, may fall into different local "
        "minima” under SGD, and take the same path under SGD-G, Adam-G and PSI-SGD.",
        f"{_CHO}, poster",
        other_lengths,
        proof="chapters 01, 04, 05 and 06",
        test="test_claims.py::test_lengths_part_the_paths_of_sgd_alone",
    ),
    "C8": Claim(
        "Weight decay of a weight row without length “functions as a learning rate control”: rate and decay set the "
        "angle by which SGD turns it.",
        f"{_CHO}, poster; the angle is that of Wan et al. 2021 and Kosson et al. 2024",
        rate_control,
    ),
    "P1": Claim(
        "From equivalent weights and momenta PSI-SGD goes through equivalent weights.",
        f"{_YI}, theorem 1",
        proof="chapter 06",
        test="test_optim.py::test_psi_sgd_is_equivariant_bit_for_bit",
    ),
    "P2": Claim(
        "PSI-SGD converges faster than SGD: its training loss is lower before the rate first drops.",
        f"{_YI}, theorems 2 to 5 and figures 3 and 4 (the measure is ours)",
        lower_loss("psi-sgd", early_only=True, decays=(True, False)),
    ),
    "P3a": Claim(
        "PSI-SGD generalizes better than SGD, neither with weight decay.",
        f"{_YI}, table 1",
        lower_test_error("psi-sgd", decays=False),
    ),
    "P3b": Claim(
        "PSI-SGD generalizes better than SGD, both with weight decay.",
        f"{_YI}, table 2",
        lower_test_error("psi-sgd"),
    ),
    "S1": Claim(
        "The sphere differs from G(1, n) in the sign alone, and batch normalization sees the sign.",
        f"against {_CHO}, poster: x ~ ax for all a ≠ 0",
        proof="chapter 02",
        test="test_claims.py::test_batch_normalization_sees_the_sign_and_not_the_length",
    ),
    "S2": Claim(
        "A step of PSI-GD goes in the direction of a step of SGD-G, up to the third power of the angle.",
        f"{_CHO} against {_YI}; derived in chapter 06",
        proof="chapter 06",
        test="test_claims.py::test_psi_gd_is_sgd_g_to_third_order",
    ),
}
"""The claims that the book asks about, in the order of its ledger."""
