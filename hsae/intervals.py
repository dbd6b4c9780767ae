"""Means over seeds and shares of trials, with their uncertainty."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

Z = 1.959964
"""of a 95% interval"""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds. `std`: the sample's (n - 1); `half`: half the width of the mean's 95% interval (Student's t).

    Both are None for a single seed.
    """

    count: int
    mean: float
    std: float | None = None
    half: float | None = None


def estimate(values: Iterable[float | int | None]) -> Estimate | None:
    """The mean of one value a seed, and how sure it is. What is None or not finite is left out; None when all is."""
    there = [float(value) for value in values if value is not None and math.isfinite(value)]
    if not there:
        return None
    count, mean = len(there), statistics.fmean(there)
    if count == 1:
        return Estimate(1, mean)
    from scipy.special import stdtrit  # Student's t quantile; scipy takes a while to import

    std = statistics.stdev(there)
    return Estimate(count, mean, std, float(stdtrit(count - 1, 0.975)) * std / math.sqrt(count))


def wilson(right: int, of: int) -> tuple[float, float, float]:
    """A share and its 95% interval (Wilson, 1927)."""
    share, square = right / of, Z * Z
    middle = (share + square / (2 * of)) / (1 + square / of)
    half = Z * math.sqrt(share * (1 - share) / of + square / (4 * of * of)) / (1 + square / of)
    return share, middle - half, middle + half
