"""Peak memory of one training, in a process of its own.

    python -m peers.memory MODULE JOB STEPS

    before      resident memory once everything is imported and a training of 64 latents has run for two steps, so that
                libraries, threads and kernels are there
    peak        the highest resident memory from there to the end of the training (the kernel's VmHWM, set back to the
                present by /proc/self/clear_refs)
    buffer      one batch, the memory that every batch is read into
    parameters, optimiser      bytes of the tensors that a checkpoint holds
    beyond      peak - before - buffer - parameters - optimiser

So `beyond` is everything else: activations and their gradients, new weights beside the old ones, metrics, what the
allocator keeps. Rows are read with `readinto`, since mapped pages would count as resident. Linux only.
"""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from peers.job import Job

# Rows that statistics are taken of before the start: few, since the sample is memory too.
SAMPLE = 4096


def measure(module: str, job: Job, steps: int) -> dict[str, Any]:
    """The accounting above, in bytes."""
    # Before PyTorch: some tools set up their process first.
    make = importlib.import_module(f"peers.{module}").make
    import numpy as np
    import torch

    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    with open(job.rows, "rb") as file:
        np.lib.format.read_magic(file)
        shape, _, _ = np.lib.format.read_array_header_1_0(file)
        data = file.tell()
        sample = np.fromfile(file, np.float32, SAMPLE * shape[1]).reshape(-1, shape[1])
        warm = make(replace(job, latents=64, batch=512), sample)
        for rows in torch.from_numpy(sample).split(512)[:2]:
            warm.step(rows.clone())
        del warm
        before = _resident("VmRSS")
        exact = _forget_peak()
        buffer = torch.empty(job.batch, shape[1])
        trainee = make(job, sample)
        file.seek(data)
        for _ in range(steps):
            view = memoryview(buffer.numpy()).cast("B")  # pyright: ignore[reportArgumentType]
            if file.readinto(view) < len(view):
                file.seek(data)
                file.readinto(view)
            trainee.step(buffer)
    found = {"before": before, "peak": _resident("VmHWM"), "buffer": buffer.nbytes, **trainee.tensors()}
    spent = found["peak"] - sum(value for name, value in found.items() if name != "peak")
    return {**found, "beyond": spent, "exact": exact}


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    raise OSError(f"no {field} in /proc/self/status")


def _forget_peak() -> bool:
    """Set the peak back to the present; whether the system lets us."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Job.read(sys.argv[2]), int(sys.argv[3]))))
