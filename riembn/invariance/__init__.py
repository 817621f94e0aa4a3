"""Finds which weights of a network are scale-invariant, at which granularity, and why."""

from riembn.invariance.report import Entry as Entry
from riembn.invariance.report import Split as Split
from riembn.invariance.split import split as split
