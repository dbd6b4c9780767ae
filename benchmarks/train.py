"""Training steps of hsae and of its peers, in turns, on the same batches in memory.

    python benchmarks/train.py                          # all tasks on synthetic activations; make bench
    python benchmarks/train.py --store stories260k      # on a store of yours
    python benchmarks/train.py --short                  # the same in a few minutes; make bench-short
    python benchmarks/train.py --sweep                  # over dictionary size, width and density
    python benchmarks/train.py --memory                 # peak memory of hsae
    python benchmarks/train.py --tasks relu --tools hsae sae-lens --rounds 5

The clock runs while a tool trains on batches that are in memory: reading, scoring and starting are outside it. Every
tool trains on from its own start, so densities move as they do in use. See README.md beside this file.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from harness import environments, memory, report, sweep
from harness.compare import compare
from harness.data import HELD_OUT, rows_file
from harness.entries import TASKS, entries, names, short
from peers.job import Job

# Steps in which L0 falls from half of the latents to what it stays near.
WARMUP = 20


def main() -> None:
    settings = _arguments()
    if not settings.no_environments and not settings.memory:
        _environments(settings)
    machine = report.machine(settings.threads)
    if settings.memory:
        return memory.run(settings, machine)
    if settings.sweep:
        return sweep.run(settings, machine)
    with rows_file(settings.store, settings.hook, settings.width, settings.tokens, settings.held_out) as (path, told):
        job = Job(
            task="",
            rows=str(path),
            held_out=settings.held_out,
            latents=settings.latents,
            batch=settings.batch,
            threads=settings.threads,
            steps=settings.warmup + settings.rounds * settings.steps,
            k=settings.k,
        )
        return _compare(settings, machine, job, told)


def _compare(settings: argparse.Namespace, machine: dict[str, Any], job: Job, told: str) -> None:
    width = report.width_of(job.rows)
    done = f"{settings.rounds} rounds of {settings.steps} steps after {settings.warmup}"
    size = f"{job.latents:,} latents, {job.batch:,} tokens a step, float32, {done}"
    text = f"# Training steps\n\n{report.said(machine)}\n\n{told}; {size}\n"
    print(text)
    tasks = {}
    for task in settings.tasks:
        found = entries(task, job, settings.tools, settings.pages)
        if settings.short:
            found = [replace(entry, warmup=WARMUP if entry.module == "ours" else None) for entry in short(task, found)]
        if not found:
            continue
        tasks[task] = compare(found, width, settings.rounds, settings.steps, settings.warmup)
        section = _section(task, tasks[task], job)
        print(section)
        text += section
    record = {"machine": machine, "data": told, "width": width, "job": job, "tasks": tasks}
    report.write(settings.out, settings.name or ("train-short" if settings.short else "train"), record, text)


def _section(task: str, result: dict[str, Any], job: Job) -> str:
    title = {"relu": "ReLU, L1 penalty", "topk": f"TopK, k = {job.k}", "softhebb": "SoftHebb, tied"}[task]
    floor = ""
    if result["floor"] is not None:
        best = f"{result['rate'] / 1e9:.0f} GFLOP/s ({result['rate_of']})"
        floor = f"Floor: {report.PRODUCTS[task]} dense products at {best}, {result['floor'] * 1e3:.0f} ms.\n"
    return f"\n## {title}\n\n{floor}\n{report.table(result['rows'])}\n"


def _environments(settings: argparse.Namespace) -> None:
    """Make what the chosen tools need."""
    job = Job("", "", 1, 1, 1, 1, 1)
    needed = {entry.peer for task in settings.tasks for entry in entries(task, job, settings.tools) if entry.peer}
    for peer in sorted(needed):
        environments.make(peer)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--store", default="", help="activation store; without one, synthetic activations are made")
    add("--hook", default="", help="hook point of the store, if it has several")
    add("--tokens", type=int, default=400_000, help="rows to train on")
    add("--held-out", type=int, default=HELD_OUT, help="rows to score on")
    add("--width", type=int, default=64, help="of synthetic activations")
    add("--latents", type=int, default=3200)
    add("--batch", type=int, default=16_384, help="tokens a step")
    add("--k", type=int, default=32, help="of TopK")
    add("--tasks", nargs="+", choices=TASKS, default=TASKS)
    known = f"of {', '.join(names())}; or modules of benchmarks/peers"
    add("--tools", nargs="+", default=(), metavar="TOOL", help=known)
    add("--pages", nargs="+", default=("small", "huge"), choices=("small", "huge"), help="PyTorch's huge pages")
    add("--rounds", type=int, default=6)
    add("--steps", type=int, default=8, help="of each tool in a round")
    add("--warmup", type=int, default=WARMUP, help="steps before the first round")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--out", type=Path, help="folder for DATE-NAME.json and .md")
    add("--name", default="", help="of the results")
    add("--no-environments", action="store_true", help="make none; what is missing is reported as failed")
    add("--short", action="store_true", help="5 rounds of one step, each tool in one setting")
    add("--sweep", action="store_true")
    add("--memory", action="store_true")
    settings = parser.parse_args()
    settings.pages = [page == "huge" for page in settings.pages]
    if settings.short:
        settings.rounds, settings.steps, settings.warmup = 5, 1, 3
    return settings


if __name__ == "__main__":
    main()
