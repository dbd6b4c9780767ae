"""Curves of FVU over training time: tools in turns, scored between turns, outside the clock."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from harness.pool import Entry, Failed, Worker

# The first steps compile, and fault memory in: they count as long as the step after them.
FIRST = 2
# A turn is at most this share of the time that was trained before it.
EARLY = 0.15


@dataclass
class Curve:
    """A training: at each score, the seconds trained so far, steps, FVU and L0 on held-out rows."""

    entry: Entry
    points: list[dict[str, float]] = field(default_factory=list)
    failure: str = ""
    # The clock, step by step.
    _seconds: list[float] = field(default_factory=list)

    @property
    def best(self) -> float:
        """The lowest FVU."""
        return min((point["fvu"] for point in self.points), default=math.inf)

    @property
    def spent(self) -> float:
        """Seconds trained."""
        return sum(self._seconds)

    @property
    def steps(self) -> int:
        """Steps trained."""
        return len(self._seconds)

    def reached(self, target: float) -> float | None:
        """Seconds until the FVU was at the target, straight in its logarithm between two scores; None: never."""
        for before, after in pairwise(self.points):
            if before["fvu"] <= target:
                break
            if after["fvu"] <= target:
                share = math.log(before["fvu"] / target) / math.log(before["fvu"] / after["fvu"])
                return before["seconds"] + share * (after["seconds"] - before["seconds"])
        return self.points[0]["seconds"] if self.points and self.points[0]["fvu"] <= target else None

    def add(self, seconds: Sequence[float], scored: Mapping[str, float]) -> None:
        """Count a turn."""
        self._seconds.extend(seconds)
        if len(self._seconds) > FIRST:
            self._seconds[:FIRST] = [min(self._seconds[FIRST], second) for second in self._seconds[:FIRST]]
            for point in self.points[:FIRST]:
                point["seconds"] = sum(self._seconds[: int(point["steps"])])
        self.points.append({"seconds": self.spent, "steps": self.steps, **scored})

    def record(self) -> dict[str, Any]:
        """For JSON."""
        entry = self.entry
        head = {"tool": entry.name, "pages": "huge" if entry.pages else "small", "failure": self.failure}
        job = {"k": entry.job.k, "batch": entry.job.batch, "lr": entry.job.lr, "seed": entry.job.seed}
        return head | job | {"points": self.points, "median_step": statistics.median(self._seconds or [math.nan])}


def race(entries: Sequence[Entry], seconds: float, interval: float, target: float = 0.0) -> list[Curve]:
    """Train each until it has reached the target or trained for so long, at most `interval` seconds at a turn."""
    curves = [Curve(entry) for entry in entries]
    workers: dict[int, Worker] = {}
    try:
        for i, curve in enumerate(curves):
            try:
                workers[i] = Worker(curve.entry)
            except Failed as failed:
                curve.failure = str(failed)
        for i in [*workers]:
            _attempt(curves[i], workers, i, lambda worker: worker.ready())
        while workers:
            for i in [*workers]:
                curve = curves[i]
                # The last one's threads fall asleep.
                time.sleep(0.02)
                _attempt(curve, workers, i, lambda worker, curve=curve: _turn(curve, worker, interval))
                done = curve.best <= target or curve.spent >= seconds or curve.steps >= curve.entry.job.steps
                if i in workers and done:
                    workers.pop(i).close()
    finally:
        for worker in workers.values():
            worker.close()
    return curves


def _turn(curve: Curve, worker: Worker, interval: float) -> None:
    steps = 1
    if curve.steps > FIRST:
        # Early on the FVU falls fast: scored often.
        turn = min(interval, EARLY * curve.spent)
        steps = max(1, round(turn * curve.steps / curve.spent))
    steps = min(steps, curve.entry.job.steps - curve.steps)
    answer = worker.ask(f"run {steps}")
    curve.add(answer["seconds"], worker.ask("score"))


def _attempt(curve: Curve, workers: dict[int, Worker], i: int, what: Any) -> None:
    """Do something with a worker; if it died, note that and go on without it."""
    try:
        what(workers[i])
    except Failed as failed:
        curve.failure = str(failed)
        print(f"{curve.entry.label}: {failed}", file=sys.stderr)
        workers.pop(i).close()
