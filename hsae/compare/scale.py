"""Axes of the Pareto plot, for the terminal and the page alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

FLOOR = -0.25
"""worth below which a point is drawn at the edge: an SAE far worse than the mean would flatten all others"""


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, linear or logarithmic."""

    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Where a value lies, 0 … 1; beyond the ends, at the end."""
        low, high, value = (math.log(v) if self.logarithmic else v for v in (self.low, self.high, value))
        return min(max((value - low) / (high - low), 0.0), 1.0)


def l0_axis(values: Sequence[float]) -> Axis:
    """A logarithmic axis around values above 0, with ticks at 1, 2, 5, 10 …"""
    low, high = min(values) / 1.25, max(values) * 1.25
    every = [step * 10.0**power for power in range(-6, 8) for step in (1, 2, 5)]
    inside = [tick for tick in every if low <= tick <= high]
    if len(inside) < 2:
        low, high = max(t for t in every if t <= low), min(t for t in every if t >= high)
        inside = [tick for tick in every if low <= tick <= high]
    return Axis(low, high, tuple(inside), logarithmic=True)


def worth_axis(values: Sequence[float]) -> Axis:
    """A linear axis around values that are 1 at best, with round ticks."""
    low, high = max(min(values), FLOOR), min(max(max(values), FLOOR + 0.05), 1.0)
    step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if (high - low) / step <= 5)
    first, last = math.floor(low / step), math.ceil(high / step)
    if first == last:
        last += 1
    return Axis(first * step, last * step, tuple(round(i * step, 2) for i in range(first, last + 1)))
