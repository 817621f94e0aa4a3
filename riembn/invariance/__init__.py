"""Which weights of a network are scale-invariant, at which granularity, and why."""

from riembn.invariance.measure import split as split
from riembn.invariance.report import Split as Split
from riembn.invariance.report import Verdict as Verdict

__all__ = ["Split", "Verdict", "split"]
