"""Which weights of a network are scale-invariant, at which granularity, and why."""

from riembn.invariance.report import Split as Split
from riembn.invariance.report import Verdict as Verdict
from riembn.invariance.split import split as split

__all__ = ["Split", "Verdict", "split"]
