"""EleutherAI's sparsify: its `SparseCoder` and optimiser, in a loop of our own that does what its `Trainer` does.

The trainer itself runs a language model and learns inside a forward hook, so it cannot be given activations. Left out
is what belongs to the hook: copying the outputs and masking tokens. Kept is all else that a step does with its
defaults: the decoder's norm before the forward, the variance of the batch, the loss (FVU), the mask of latents that
fired, reading the loss back, the gradient without its part along the decoder rows, and the count of tokens since a
latent fired. The optimiser is its default, sign descent under schedule-free averaging; option `adam`: its `adam`,
without the warm-up.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from peers.job import Job
from peers.worker import Trainee, bare, serve

# Its own __init__ imports datasets, for harvesting.
bare("sparsify")

from schedulefree import ScheduleFreeWrapper  # noqa: E402  # pyright: ignore[reportMissingImports]
from sparsify.config import SparseCoderConfig  # noqa: E402  # pyright: ignore
from sparsify.sign_sgd import SignSGD  # noqa: E402  # pyright: ignore
from sparsify.sparse_coder import SparseCoder  # noqa: E402  # pyright: ignore


class Sparsify(Trainee):
    package = "eai-sparsify"

    def __init__(self, job: Job, rows: np.ndarray) -> None:
        torch.set_float32_matmul_precision("high")
        self.coder = SparseCoder(rows.shape[1], SparseCoderConfig(num_latents=job.latents, k=job.k), "cpu")
        size = (job.latents / 2**14) ** 0.5
        if job.options.get("adam"):
            self.optimiser: Any = torch.optim.Adam(self.coder.parameters(), lr=job.lr or 2e-4 / size)
        else:
            descent = SignSGD(self.coder.parameters(), lr=job.lr or 5e-3 / size)
            self.optimiser = ScheduleFreeWrapper(descent, momentum=0.95)
            self.optimiser.train()
        self.since_fired = torch.zeros(job.latents, dtype=torch.long)
        self.fired = torch.zeros(job.latents, dtype=torch.bool)
        self.fvu, self.done = 0.0, 0

    def step(self, batch: Tensor) -> None:
        if self.done == 0:
            self.coder.b_dec.data = batch.mean(0)
        self.coder.set_decoder_norm_to_unit_norm()
        spread = (batch - batch.mean(0)).pow(2).sum()
        out = self.coder(x=batch, y=batch, total_variance=spread)
        self.fired[out.latent_indices.flatten()] = True
        self.fvu = float(out.fvu.detach())
        out.fvu.backward()
        self.coder.remove_gradient_parallel_to_decoder_directions()
        self.optimiser.step()
        self.optimiser.zero_grad()
        with torch.no_grad():
            self.since_fired += len(batch)
            self.since_fired[self.fired] = 0
            self.fired.zero_()
        self.done += 1

    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        averaged = isinstance(self.optimiser, ScheduleFreeWrapper)
        if averaged:
            self.optimiser.eval()
        out = self.coder(x=x, y=x)
        if averaged:
            self.optimiser.train()
        return out.sae_out, out.latent_acts


make = Sparsify

if __name__ == "__main__":
    serve(make)
