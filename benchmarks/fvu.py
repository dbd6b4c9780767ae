"""Training time to an equal FVU at an equal L0: hsae, sae-lens and dictionary_learning, as TopK SAEs.

    python benchmarks/fvu.py --store stories260k            # with the settings below
    python benchmarks/fvu.py --store stories260k --search   # each tool's batch and learning rate out of a grid, first
    python benchmarks/fvu.py --short

FVU is the share of the variance of 16,384 held-out rows that is not explained, pooled; L0 is at most k by construction.
All tools see the same rows and train on from a start of their own, in turns. Time is that of training steps, batches
being in memory; every `--interval` seconds of it, early on more often, a tool is scored, outside the clock. The target
is the FVU that the tool that comes least far reaches in `--seconds` of the search, unless it is given. See README.md
beside this file.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from harness import environments, report
from harness.data import HELD_OUT, rows_file
from harness.pool import Entry
from harness.race import Curve, race
from peers.job import Job

# Each tool's best (batch, learning rate) at an L0, of the grid below, on TinyStories activations (see README.md).
SETTINGS: dict[str, dict[int, tuple[int, float | None]]] = {
    "hsae bp": {32: (1024, 5e-3), 8: (1024, 5e-3)},
    "hsae residual-hebb": {32: (2048, None), 8: (2048, None)},
    "sae-lens": {32: (1024, 5e-3), 8: (1024, 5e-3)},
    "dictionary_learning": {32: (1024, 3e-3), 8: (1024, 3e-3)},
}
BATCHES = (1024, 2048, 4096)
RATES: dict[str, tuple[float | None, ...]] = {
    "hsae bp": (2e-3, 5e-3, 1e-2, 2e-2),
    "hsae residual-hebb": (0.7, 1.4, 2.8),
    "sae-lens": (3e-4, 1e-3, 3e-3, 1e-2),
    "dictionary_learning": (3e-4, 1e-3, 3e-3, 1e-2),
}
OURS = "hsae bp"
# Search in the setting in which a tool is fastest: it learns the same in the other.
TUNED = {"sae-lens": "sae-lens, tuned", "dictionary_learning": "dictionary_learning, huge pages"}


def lines(tool: str, job: Job) -> list[Entry]:
    """A tool as it is shipped, and as fast as settings make it. hsae sets huge pages itself."""
    if tool == "hsae bp":
        return [Entry(tool, "ours", job, pages=True)]
    if tool == "hsae residual-hebb":
        return [Entry(tool, "ours", replace(job, options={"setup": "residual-hebb"}), pages=True)]
    peer = "saelens" if tool == "sae-lens" else tool
    tuned = replace(job, options={"compile": True}) if tool == "sae-lens" else job
    return [Entry(tool, peer, job, peer), Entry(TUNED[tool], peer, tuned, peer, pages=True)]


def main() -> None:
    settings = _arguments()
    for peer in sorted({entry.peer for tool in settings.tools for entry in lines(tool, _blank())} - {""}):
        environments.make(peer)
    machine = report.machine(settings.threads)
    with rows_file(settings.store, settings.hook, settings.width, settings.tokens, settings.held_out) as (path, told):
        text = f"# Time to equal FVU at equal L0\n\n{report.said(machine)}\n\n{told}; {settings.latents:,} latents\n"
        print(text)
        job = replace(
            _blank(),
            rows=str(path),
            held_out=settings.held_out,
            latents=settings.latents,
            threads=settings.threads,
            steps=settings.most_steps,
        )
        results = []
        for k in settings.k:
            results.append(_measure(replace(job, k=k), settings))
            section = _section(results[-1])
            print(section, flush=True)
            text += section
            record = {"machine": machine, "data": told, "latents": settings.latents, "results": results}
            report.write(settings.out, settings.name or ("fvu-short" if settings.short else "fvu"), record, text)


def _measure(job: Job, settings: argparse.Namespace) -> dict[str, Any]:
    chosen = {tool: SETTINGS[tool].get(job.k, SETTINGS[tool][32]) for tool in settings.tools}
    if settings.batch:
        chosen = {tool: (settings.batch, rate) for tool, (_, rate) in chosen.items()}
    tried: list[Curve] = []
    target = settings.target
    if settings.search:
        for tool in settings.tools:
            for batch in BATCHES:
                for rate in RATES[tool]:
                    entry = lines(tool, replace(job, batch=batch, lr=rate))[-1]
                    tried += race([entry], settings.seconds, settings.interval)
                    print(f"k {job.k}, {tool}, batch {batch}, lr {rate}: FVU {tried[-1].best:.4f}", flush=True)
        target = target or _within_reach(settings.tools, tried)
        for tool in settings.tools:
            best = min(_of(tool, tried), key=lambda curve: (curve.reached(target) or 1e9, curve.best))
            chosen[tool] = (best.entry.job.batch, best.entry.job.lr)
    if not target:
        pilots = [lines(tool, replace(job, batch=batch, lr=lr))[-1] for tool, (batch, lr) in chosen.items()]
        tried = race(pilots, settings.seconds, settings.interval)
        target = _within_reach(settings.tools, tried)
    runs: list[Curve] = []
    for seed in range(settings.seeds):
        entries = [
            entry
            for tool in settings.tools
            for entry in lines(tool, replace(job, batch=chosen[tool][0], lr=chosen[tool][1], seed=seed))
        ]
        runs += race(entries, settings.longest, settings.interval, target)
    return {
        "k": job.k,
        "target": target,
        "settings": chosen,
        "tools": _table(runs, target),
        "curves": [curve.record() for curve in runs],
        "search": [curve.record() for curve in tried] if settings.search else [],
    }


def _of(tool: str, curves: Sequence[Curve]) -> list[Curve]:
    return [curve for curve in curves if curve.entry.name in (tool, TUNED.get(tool)) and curve.points]


def _within_reach(tools: Sequence[str], curves: Sequence[Curve]) -> float:
    """The FVU that every tool reaches in its best setting, and a little."""
    return 1.02 * max(min((curve.best for curve in _of(tool, curves)), default=1.0) for tool in tools)


def _table(runs: Sequence[Curve], target: float) -> list[dict[str, Any]]:
    """For each line, the seconds to the target over seeds."""
    rows = []
    for name in dict.fromkeys(curve.entry.name for curve in runs):
        mine = [curve for curve in runs if curve.entry.name == name]
        times = [reached for curve in mine if (reached := curve.reached(target)) is not None]
        last = [curve.points[-1] for curve in mine if curve.points]
        rows.append(
            {
                "tool": name,
                "pages": "huge" if mine[0].entry.pages else "small",
                "batch": mine[0].entry.job.batch,
                "lr": mine[0].entry.job.lr,
                "seconds": statistics.median(times) if len(times) == len(mine) else None,
                "fastest": min(times, default=None),
                "slowest": max(times, default=None),
                "reached": f"{len(times)} of {len(mine)}",
                "l0": max((point["l0"] for point in last), default=None),
                "fvu": min((point["fvu"] for point in last), default=None),
                "failure": next((curve.failure for curve in mine if curve.failure), ""),
            }
        )
    ours = next((row["seconds"] for row in rows if row["tool"] == OURS), None)
    for row in rows:
        row["times_hsae"] = row["seconds"] / ours if ours and row["seconds"] else None
    return rows


def _section(result: dict[str, Any]) -> str:
    text = f"\n## k = {result['k']}: FVU {result['target']:.4f}\n\n"
    text += "| tool | pages | batch | lr | seconds | range over seeds | reached | × hsae bp | L0 |\n"
    text += "|---|---|---:|---:|---:|---:|---:|---:|---:|\n"
    for row in result["tools"]:
        if row["failure"]:
            text += (
                f"| {row['tool']} | {row['pages']} | failed: {' '.join(row['failure'].split())[-160:]} | | | | | | |\n"
            )
            continue
        took = "" if row["seconds"] is None else f"{row['seconds']:.2f}"
        span = "" if row["fastest"] is None else f"{row['fastest']:.2f} – {row['slowest']:.2f}"
        rate = "default" if row["lr"] is None else f"{row['lr']:g}"
        times = "" if row["times_hsae"] is None else f"{row['times_hsae']:.2f}"
        cells = (row["tool"], row["pages"], f"{row['batch']:,}", rate, took, span, row["reached"], times)
        text += "| " + " | ".join(cells) + f" | {row['l0']:.1f} |\n"
    return text


def _blank() -> Job:
    return Job("topk", "", 1, 1, 1, 1, 1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--store", default="", help="activation store; without one, synthetic activations are made")
    add("--hook", default="", help="hook point of the store, if it has several")
    add("--tokens", type=int, default=1_000_000, help="rows to train on")
    add("--held-out", type=int, default=HELD_OUT, help="rows to score on")
    add("--width", type=int, default=64, help="of synthetic activations")
    add("--latents", type=int, default=3200)
    add("--k", type=int, nargs="+", default=(32, 8))
    add("--tools", nargs="+", choices=[*SETTINGS], default=[*SETTINGS])
    add("--search", action="store_true", help="choose batch and learning rate out of the grid first")
    add("--target", type=float, default=0.0, help="FVU to reach; 0: what all can")
    add("--batch", type=int, default=0, help="for all tools; 0: each tool's own")
    add("--seconds", type=float, default=10.0, help="trained in each run of the search")
    add("--longest", type=float, default=120.0, help="trained at most for the target")
    add("--most-steps", type=int, default=20_000)
    add("--interval", type=float, default=0.5, help="seconds trained between scores")
    add("--seeds", type=int, default=3)
    add("--threads", type=int, default=torch.get_num_threads())
    add("--out", type=Path, help="folder for DATE-NAME.json and .md")
    add("--name", default="", help="of the results")
    add("--short", action="store_true", help="one seed, k = 32, a few seconds")
    settings = parser.parse_args()
    if settings.short:
        settings.k, settings.seeds, settings.seconds, settings.longest = settings.k[:1], 1, 5.0, 20.0
    return settings


if __name__ == "__main__":
    main()
