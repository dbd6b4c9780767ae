"""`train.py --memory`: peak memory of a training beyond parameters, optimiser and one batch. See `peers/memory.py`."""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from peers.job import Job

from harness import report
from harness.data import rows_file
from harness.entries import entries
from harness.pool import Entry, command, surroundings

LATENTS = (3200, 32_768)
TOOLS = ("hsae", "hsae (PyTorch)", "plain PyTorch")
STEPS = 12
# Beyond this, tools that keep whole [token, latent] matrices are not tried.
LIMIT = 8 << 30
COLUMNS = ("beyond", "parameters", "optimiser", "buffer", "before", "peak")


def run(settings: argparse.Namespace, machine: dict[str, Any]) -> None:
    """Measure, print, write."""
    tools = settings.tools or TOOLS[: 1 if settings.short else None]
    with rows_file(settings.store, settings.hook, settings.width, settings.tokens, settings.held_out) as (path, told):
        job = Job("", str(path), settings.held_out, 0, settings.batch, settings.threads, STEPS, k=settings.k)
        rows = [
            {"task": task, "latents": latents, "tool": entry.name, "pages": entry.pages, **_measured(entry)}
            for task in settings.tasks
            for latents in LATENTS
            for entry in entries(task, replace(job, latents=latents), tools, (True,))
        ]
    text = f"# Peak memory of training\n\n{report.said(machine)}\n\n{told}; {settings.batch:,} tokens a step, MB\n\n"
    text += "| task | latents | tool | " + " | ".join(COLUMNS) + " |\n|---|---:|---|" + "---:|" * len(COLUMNS) + "\n"
    for row in rows:
        head = f"| {row['task']} | {row['latents']:,} | {row['tool']} | "
        text += head + " | ".join(_megabytes(row, name) for name in COLUMNS) + " |\n"
    print(text)
    name = settings.name or ("memory-short" if settings.short else "memory")
    report.write(settings.out, name, {"machine": machine, "data": told, "rows": rows}, text)


def _measured(entry: Entry) -> dict[str, Any]:
    job = entry.job
    if entry.module != "ours" and 4 * 4 * job.batch * job.latents > LIMIT:
        return {"failure": "would not fit"}
    words = command(entry, "memory", entry.module, job.json(), str(STEPS))
    done = subprocess.run(words, **surroundings(entry), capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failure": done.stderr.strip()[-300:]}
    return json.loads(done.stdout.splitlines()[-1])


def _megabytes(row: Mapping[str, Any], name: str) -> str:
    return f"{row[name] / 1e6:.1f}" if name in row else row.get("failure", "").replace("\n", " ")[:40]
