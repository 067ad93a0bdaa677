"""The few statistics that the reports use."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import TypedDict


class Rate(TypedDict):
    """A share of n trials with its Wilson 95 % interval. All zero when there was no trial."""

    hits: int
    n: int
    rate: float
    low: float
    high: float


class Spread(TypedDict):
    """Median and quartiles of n values."""

    n: int
    median: float
    q1: float
    q3: float


def wilson(hits: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson score interval of a binomial rate (E. B. Wilson, JASA 22, 1927); z 1.96 is the 95 % one."""
    if not 0 <= hits <= n:
        raise ValueError(f"hits must be from 0 to n, not {hits} of {n}")
    if n == 0:
        return 0.0, 1.0
    rate, spare = hits / n, z * z / n
    middle = (rate + spare / 2) / (1 + spare)
    half = z / (1 + spare) * math.sqrt(rate * (1 - rate) / n + spare / (4 * n))
    return min(rate, max(0.0, middle - half)), max(rate, min(1.0, middle + half))


def rate(outcomes: Iterable[bool]) -> Rate:
    """Share of true outcomes."""
    all_ = list(outcomes)
    hits, n = sum(all_), len(all_)
    low, high = wilson(hits, n)
    return Rate(hits=hits, n=n, rate=hits / n if n else 0.0, low=low, high=high)


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles (linear between neighbours). Raises ValueError for no values."""
    if not values:
        raise ValueError("no values to summarise")
    if len(values) == 1:
        return Spread(n=1, median=values[0], q1=values[0], q3=values[0])
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(n=len(values), median=median, q1=q1, q3=q3)
