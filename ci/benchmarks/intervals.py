"""What is a time or a ratio of times, and how sure is that?"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A median and its 95 % interval; without ends where there are too few values for one."""

    median: float
    low: float | None
    high: float | None

    @property
    def width(self) -> float:
        """Of the interval, relative to the median."""
        if self.low is None or self.high is None:
            return math.inf
        return (self.high - self.low) / self.median

    def into(self, numerator: float) -> Interval:
        """``numerator`` divided by it."""
        low, high = (None if end is None else numerator / end for end in (self.high, self.low))
        return Interval(numerator / self.median, low, high)

    def told(self) -> dict[str, float | None]:
        """As a record keeps it."""
        return {"median": self.median, "low": self.low, "high": self.high}


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    r"""The median, between two order statistics that enclose it with at least the given probability.

    The number of values below the true median is binomial with probability 1/2, whatever their distribution:
    :math:`P(x_{(k)} \le m \le x_{(n+1-k)}) = 1 - 2 P(B \le k - 1)`. Fewer than six values have no such interval at
    95 %, and then there is none.
    """
    ordered, n = sorted(values), len(values)
    ways = below = (
        1  # in which k, and at most k, of n values lie below; whole numbers, since 2**-n underflows
    )
    k = 0
    while k < n and below / 2**n <= (1 - confidence) / 2:
        ways = ways * (n - k) // (k + 1)
        below += ways
        k += 1
    median = statistics.median(ordered)
    return Interval(median, ordered[k - 1], ordered[n - k]) if k else Interval(median, None, None)


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Lower quartile, median and upper quartile."""
    ends = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return dict(zip(("low", "median", "high"), ends, strict=True))
