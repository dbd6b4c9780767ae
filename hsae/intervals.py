"""Means over seeds, with their uncertainty."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds. `std`: the sample's; `half`: half the width of the mean's 95% interval (Student's t).

    Both are None for a single seed.
    """

    mean: float
    std: float | None
    half: float | None
    count: int


def estimate(values: Sequence[float | int]) -> Estimate:
    """The mean of one value a seed, and how sure it is.

    Raises:
        ValueError: there is no value.
    """
    count, mean = len(values), statistics.fmean(values)
    if count == 1:
        return Estimate(mean, None, None, 1)
    from scipy.special import stdtrit  # Student's t quantile; scipy takes a while to import

    std = statistics.stdev(values)
    return Estimate(mean, std, float(stdtrit(count - 1, 0.975)) * std / math.sqrt(count), count)
