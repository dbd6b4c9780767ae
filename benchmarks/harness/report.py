"""Tables for the eye, JSON for the record."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.pool import Measured

# A dense step: encode, decode, and the gradients of code, decoder and encoder. SoftHebb on one matrix: encode, sᵀx.
PRODUCTS = {"relu": 5, "topk": 5, "softhebb": 2}


def machine(threads: int) -> dict[str, Any]:
    """Date, processor, cores, versions."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": threads,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def said(record: Mapping[str, Any]) -> str:
    """A machine in one line."""
    return (
        f"{record['date']} · {record['cpu']}, {record['cores']} cores, {record['threads']} threads · "
        f"PyTorch {record['torch']}, Python {record['python']} · {record['system']}"
    )


def summary(result: Measured, batch: int, shipped: float | None, floor: float | None) -> dict[str, Any]:
    """One line of the table, from the medians of the rounds.

    Args:
        result: of an entry.
        batch: tokens a step.
        shipped: seconds of a step of hsae as it is shipped, if it was measured.
        floor: seconds of the dense products of a step at the machine's best rate.
    """
    entry = result.entry
    head = {"tool": entry.name, "pages": "huge" if entry.pages else "small", "versions": result.versions}
    if result.failure or not result.rounds:
        return head | {"failure": result.failure}
    medians = [statistics.median(seconds) for seconds in result.rounds]
    middle = statistics.median(medians)
    return head | {
        "seconds": middle,
        "fastest": min(medians),
        "slowest": max(medians),
        "tokens_per_second": batch / middle,
        "times_hsae": None if shipped is None else middle / shipped,
        "times_floor": None if floor is None else middle / floor,
        "steps": sum(map(len, result.rounds)),
        "l0_start": result.l0[0],
        "l0": result.l0[-1],
        "fvu_start": result.fvu[0],
        "fvu": result.fvu[-1],
        "l1": entry.job.l1 if entry.job.task == "relu" else None,
        "lr": entry.job.lr,
        # Without the first two, which compile and fault memory in.
        "seconds_before": statistics.fmean(result.before[2:]) if len(result.before) > 2 else None,
        "before": result.before,
        "rounds": result.rounds,
        "l0_by_round": result.l0,
        "fvu_by_round": result.fvu,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The lines of a comparison as Markdown."""
    lines = [
        "| tool | pages | ms before | ms a step | range | tokens/s | × hsae | × floor | L0, first → last | FVU |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        if "failure" in row:
            reason = " ".join(row["failure"].split()).replace("|", "/")[-160:]
            lines.append(f"| {row['tool']} | {row['pages']} | failed: {reason} | | | | | | | |")
            continue
        span = f"{row['fastest'] * 1e3:.0f} – {row['slowest'] * 1e3:.0f}"
        cells = (
            row["tool"],
            row["pages"],
            "" if row["seconds_before"] is None else f"{row['seconds_before'] * 1e3:.0f}",
            f"{row['seconds'] * 1e3:.0f}",
            span,
            f"{row['tokens_per_second']:,.0f}",
            _times(row["times_hsae"]),
            _times(row["times_floor"]),
            f"{row['l0_start']:.0f} → {row['l0']:.0f}",
            f"{row['fvu']:.3f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write(folder: Path | None, name: str, record: Mapping[str, Any], text: str) -> None:
    """`DATE-NAME.json` and `.md`, if a folder is given."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record['machine']['date'][:10]}-{name}"
    path.with_suffix(".json").write_text(json.dumps(record, indent=1, default=_plain) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(text.rstrip() + "\n", encoding="utf-8")
    print(f"{path}.json, .md")


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else asdict(value)


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def width_of(rows: str) -> int:
    """The width of a file of rows."""
    return int(np.load(rows, mmap_mode="r").shape[1])
