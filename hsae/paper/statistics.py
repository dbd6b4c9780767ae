"""Means over seeds with their spread, and the closed forms that the report compares measurements with."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Values over seeds: their mean, sample standard deviation (n - 1) and the mean's 95% t confidence interval.

    With one value there is no spread: `std`, `low` and `high` are None.
    """

    n: int
    mean: float
    std: float | None = None
    low: float | None = None
    high: float | None = None


def spread(values: Iterable[float | None]) -> Spread | None:
    """The spread of the values that are there; None when there is none."""
    there = [float(v) for v in values if v is not None and math.isfinite(v)]
    n = len(there)
    if not n:
        return None
    mean = sum(there) / n
    if n == 1:
        return Spread(1, mean)
    std = math.sqrt(sum((v - mean) ** 2 for v in there) / (n - 1))
    reach = t_quantile(n - 1) * std / math.sqrt(n)
    return Spread(n, mean, std, mean - reach, mean + reach)


@functools.cache
def t_quantile(freedom: int, within: float = 0.95) -> float:
    """The t below which, on either side of 0, Student's distribution of so many degrees of freedom has `within`."""
    low, high = 0.0, 1e3
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < within else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """P(|T| < t), by the finite series for whole degrees of freedom (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    cos2 = math.cos(angle) ** 2
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for i in range(1 + odd, freedom, 2):
        total += term
        term *= cos2 * i / (i + 1)
    sine = math.sin(angle) * total
    return 2 / math.pi * (angle + sine) if odd else sine


def tail(z: float) -> float:
    """The share of a standard normal distribution above z."""
    return math.erfc(z / math.sqrt(2)) / 2


def tail_quantile(share: float) -> float:
    """The z above which a standard normal distribution has `share`."""
    low, high = -40.0, 40.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if tail(middle) > share else (low, middle)
    return high


@dataclass(frozen=True)
class Implied:
    """What a line of the table says of its encoder, were all drives w·x normal with one standard deviation.

    Attributes:
        z: the threshold in standard deviations, from L0 / latents.
        each: mean activation of an active latent, L1 · width / L0.
        drive: standard deviation of w·x, from `each`.
        threshold: what a drive must exceed, z · drive; less the bias.
        drive_at_prior: the standard deviation of w·x that gives the L0 if the bias is still ln(1/latents)/temperature.
    """

    z: float
    each: float
    drive: float
    threshold: float
    drive_at_prior: float


def implied(l0: float, l1: float, latents: int, width: int, temperature: float) -> Implied:
    """Invert L0 and L1 under normal drives: P(w·x > t) = L0/latents and E[w·x - t | w·x > t] = L1·width/L0."""
    z = tail_quantile(l0 / latents)
    each = l1 * width / l0
    density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    drive = each / (density / tail(z) - z)
    return Implied(z, each, drive, z * drive, math.log(latents) / temperature / z)


def mismatch(ours: dict[str, float | None], theirs: dict[str, float]) -> float | None:
    """How far a line of a table is from the paper's: the mean of |log10 ratio| of MSE, L1, L0 and dictionary, and of
    |EVR - EVR'| cut at 3. A count of 0 counts as a tenth."""
    distances = []
    for name, wanted in theirs.items():
        value = ours.get(name)
        if value is None:
            return None
        if name == "evr":
            distances.append(min(abs(value - wanted), 3.0))
        else:
            floor = 0.1 if name in ("l0", "dictionary") else 1e-9
            distances.append(abs(math.log10(max(value, floor) / wanted)))
    return sum(distances) / len(distances)
