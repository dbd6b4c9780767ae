"""The closed forms that the report compares measurements with."""

from __future__ import annotations

import math
from dataclasses import dataclass


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
