"""`train.py --sweep`: tokens/s over the size of the dictionary, the width and the density, one at a time.

Ours always has the batch that was asked for. A tool that keeps whole [token, latent] matrices gets the largest half,
quarter … of it whose matrices fit the memory that it is allowed; the batch is in its line. Its time a token hardly
depends on that, but for the optimiser's share, which grows.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from peers.job import Job

from harness import report
from harness.compare import compare
from harness.data import rows_file
from harness.entries import entries
from harness.pool import Entry

LATENTS = (1024, 3200, 8192, 16_384, 32_768, 65_536)
WIDTHS = (64, 128, 256, 512, 1024)
KS = (8, 16, 32, 64, 128, 256, 512)
L1_FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
TOOLS = ("hsae", "hsae (PyTorch)", "plain PyTorch", "torch.compile", "sparsify, Adam")
# Whole matrices of [token, latent] that autograd holds at once, and what they may take.
COPIES, LIMIT = 5, 5 << 30
# Our densities settle in the first steps; the dense tools' time does not depend on theirs.
SETTLE, WARM = 25, 3


@dataclass(frozen=True)
class Point:
    """One setting of everything."""

    axis: str
    task: str
    latents: int
    width: int
    k: int = 32
    l1_factor: float = 1.0


def points(short: bool) -> Iterator[Point]:
    """All settings, those of one width together."""
    few = slice(None, None, 3) if short else slice(None)
    for task in ("relu", "topk"):
        yield from (Point("latents", task, latents, 64) for latents in LATENTS[few][: 1 if short else None])
    yield from (Point("density", "topk", 3200, 64, k=k) for k in KS[few])
    yield from (Point("density", "relu", 3200, 64, l1_factor=factor) for factor in L1_FACTORS[few])
    for width in WIDTHS[:1] if short else WIDTHS:
        yield from (Point("width", task, 3200, width) for task in ("relu", "topk"))


def run(settings: argparse.Namespace, machine: dict[str, Any]) -> None:
    """Measure, print, write. Results so far are written after every point, since all of it takes long."""
    found, told = [], {}
    name = settings.name or ("sweep-short" if settings.short else "sweep")
    wanted = [point for point in points(settings.short) if point.task in settings.tasks]
    for width in sorted({point.width for point in wanted}):
        store = settings.store if width == settings.width else ""
        with rows_file(store, settings.hook, width, settings.tokens, settings.held_out) as (path, told[width]):
            job = Job("", str(path), settings.held_out, 0, settings.batch, settings.threads, 100)
            for point in (point for point in wanted if point.width == width):
                found.append(_measured(point, job, settings))
                text = _text(found, machine, settings)
                print(text.splitlines()[-1], flush=True)
                record = {"machine": machine, "data": told, "points": found}
                report.write(settings.out, name, record, text)
    print(_text(found, machine, settings))


def _measured(point: Point, job: Job, settings: argparse.Namespace) -> dict[str, Any]:
    # At its default rate TopK loses latents until there are fewer than k, where k is large.
    rate = 1e-3 if point.task == "topk" else None
    job = replace(job, latents=point.latents, k=point.k, lr=rate, options={"l1_factor": point.l1_factor})
    chosen = entries(point.task, job, settings.tools or TOOLS, (True,))
    chosen = [_fitting(entry, point.width) for entry in chosen]
    result = compare(chosen, point.width, min(settings.rounds, 3), min(settings.steps, 3), WARM)
    return {"point": point, **result}


def _fitting(entry: Entry, width: int) -> Entry:
    if entry.module == "ours":
        return replace(entry, warmup=SETTLE)
    job = entry.job
    # sparsify keeps a row of the width for each active latent, twice.
    row = 4 * (COPIES * job.latents + (2 * job.k * width if entry.module == "sparsify" else 0))
    batch = job.batch
    while batch > 512 and batch * row > LIMIT:
        batch //= 2
    return replace(entry, job=replace(job, batch=batch))


def _text(found: list[dict[str, Any]], machine: dict[str, Any], settings: argparse.Namespace) -> str:
    tools = list(settings.tools or TOOLS)
    told = f"tokens/s (batch, where it is not {settings.batch:,}); L0 is hsae's"
    lines = [f"# Sweep\n\n{report.said(machine)}\n\n{told}\n"]
    lines.append("| axis | task | latents | width | L0 | " + " | ".join(tools) + " |")
    lines.append("|---|---|---:|---:|---:|" + "---:|" * len(tools))
    for one in found:
        point, rows = one["point"], {row["tool"]: row for row in one["rows"]}
        l0 = statistics.fmean(rows["hsae"]["l0_by_round"][1:]) if "l0" in rows.get("hsae", {}) else point.k
        cells = [_cell(rows.get(tool), settings.batch) for tool in tools]
        head = f"| {point.axis} | {point.task} | {point.latents:,} | {point.width} | {l0:.0f} | "
        lines.append(head + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: dict[str, Any] | None, batch: int) -> str:
    if row is None:
        return ""
    if "failure" in row:
        return "failed"
    smaller = "" if row["batch"] == batch else f" ({row['batch']:,})"
    return f"{row['tokens_per_second']:,.0f}{smaller}"
