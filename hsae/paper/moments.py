"""Moments of a training: where a line passes the paper's on its way."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from hsae.paper.measure import MEASURED, Logs, curve
from hsae.paper.published import TABLE_1
from hsae.paper.statistics import mismatch


@dataclass(frozen=True)
class Moment:
    """Metrics on the training batch of a logged step of a setup, seeds' mean, and the distance from the paper's line.

    The distance (`hsae.paper.statistics.mismatch`) leaves the dictionary out, which depends on the batch's size.
    """

    setup: str
    step: int
    metrics: dict[str, float]
    distance: float


def moments(logged: Logs, setup: str, base: str) -> list[Moment]:
    """Every logged step of a setup, compared with the paper's line of `base`."""
    curves = {m: c for m in MEASURED if (c := curve(logged, setup, m)) is not None}
    at = {m: dict(zip(c.steps, c.mean, strict=True)) for m, c in curves.items()}
    theirs = {m: TABLE_1[base].mean(m) for m in ("mse", "evr", "l1", "l0")}
    found = []
    for step in at.get("mse", {}):
        metrics = {m: values[step] for m, values in at.items() if step in values}
        distance = mismatch({**metrics}, theirs)
        if distance is not None:
            found.append(Moment(setup, step, metrics, distance))
    return found


def passing(logged: Logs, setup: str, base: str) -> Moment | None:
    """Where a setup's MSE comes nearest to the paper's, in ratio."""
    mse = TABLE_1[base].mean("mse")
    found = moments(logged, setup, base)
    return min(found, key=lambda m: abs(math.log(max(m.metrics["mse"], 1e-30) / mse)), default=None)


def nearest(logged: Logs, setups: Iterable[str], base: str) -> Moment | None:
    """The moment of any of the setups that is most like the paper's line."""
    found = [moment for setup in setups for moment in moments(logged, setup, base)]
    return min(found, key=lambda m: m.distance, default=None)
