"""The machine's floor: how fast it multiplies matrices, measured between the others' rounds.

A dense training step is five products of [token, width] by [width, latent]; the floor is their operations at the best
rate found: over the three shapes that they have, in blocks of tokens, into memory that is there already, and over one
large square product.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peers.job import Job
from peers.worker import Trainee, serve

BLOCKS = (512, 1024, 2048, 4096)
SQUARE = 2048


class Floor(Trainee):
    def __init__(self, job: Job, rows: np.ndarray) -> None:
        d, K, random = rows.shape[1], job.latents, torch.rand
        self.pairs = {"square": (random(SQUARE, SQUARE), random(SQUARE, SQUARE))}
        for tokens in BLOCKS:
            if tokens * K <= 1 << 26:
                self.pairs[f"[{tokens}, d] x [d, K]"] = random(tokens, d), random(K, d).T
                self.pairs[f"[{tokens}, K] x [K, d]"] = random(tokens, K), random(K, d)
                self.pairs[f"[K, {tokens}] x [{tokens}, d]"] = random(tokens, K).T, random(tokens, d)
        self.outs = {name: a @ b for name, (a, b) in self.pairs.items()}
        self.best: dict[str, float] = {}

    def step(self, batch: Tensor) -> None:
        for name, (a, b) in self.pairs.items():
            began = time.perf_counter()
            torch.mm(a, b, out=self.outs[name])
            rate = 2 * a.shape[0] * a.shape[1] * b.shape[1] / (time.perf_counter() - began)
            self.best[name] = max(rate, self.best.get(name, 0.0))

    def report(self) -> dict[str, Any]:
        return {"flops": self.best}

    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x.new_zeros(len(x), 1)


make = Floor

if __name__ == "__main__":
    serve(make)
