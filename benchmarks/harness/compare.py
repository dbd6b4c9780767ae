"""One comparison: entries and the floor in turns, and the lines that come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from peers.job import Job

from harness.entries import OURS
from harness.pool import Entry, alternate
from harness.report import PRODUCTS, summary


def compare(entries: Sequence[Entry], width: int, rounds: int, steps: int, warmup: int) -> dict[str, Any]:
    """Measure entries that all do one task. Their batches may differ in size, for want of memory.

    Returns:
        `rows`, as `report.summary` makes them, and the machine's `rate` in operations a second.
    """
    first = entries[0].job
    pace = Entry("floor", "floor", replace(first, task="floor", batch=512, options={}), pages=True)
    *results, floor = alternate([*entries, pace], rounds, steps, warmup)
    rates = floor.extra.get("flops", {})
    shape, rate = max(rates.items(), key=lambda item: item[1], default=("", 0.0))

    def floor_of(job: Job) -> float | None:
        operations = PRODUCTS[job.task] * 2 * job.batch * width * job.latents
        return operations / rate if rate else None

    # As `hsae train` has it: with the kernels, and with huge pages, which it switches on by itself.
    best = {result.entry.pages: result for result in results if result.entry.name == OURS and result.rounds}
    ours = best.get(True, best.get(False))
    shipped = None
    if ours is not None:
        shipped = summary(ours, 1, None, None)["seconds"] / ours.entry.job.batch
    rows = []
    for result in results:
        job = result.entry.job
        own = None if shipped is None else shipped * job.batch
        rows.append(summary(result, job.batch, own, floor_of(job)) | {"batch": job.batch})
    return {"rows": rows, "rate": rate, "rate_of": shape, "rates": rates, "floor": floor_of(first)}
