"""overcomplete: its `train_sae` with its defaults, on batches from memory.

The encoder is its default, a linear layer with batch normalisation. Its L1 is the sum over the whole batch, so the
penalty that it is given is l1 / (tokens · width), and l1 means what it means in hsae, at activations of unit variance
per dimension. TopK has no penalty.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from peers.job import Job
from peers.worker import Trainee, bare, serve

# Their own __init__ import torchvision, scikit-learn and more, for models and figures.
bare("overcomplete", "overcomplete.sae")

from overcomplete.sae.base import SAE  # noqa: E402  # pyright: ignore
from overcomplete.sae.losses import mse_l1  # noqa: E402  # pyright: ignore
from overcomplete.sae.topk_sae import TopKSAE  # noqa: E402  # pyright: ignore
from overcomplete.sae.train import train_sae  # noqa: E402  # pyright: ignore


class Overcomplete(Trainee):
    package = "overcomplete"

    def __init__(self, job: Job, rows: np.ndarray) -> None:
        width = rows.shape[1]
        if job.task == "topk":
            self.sae, penalty = TopKSAE(width, nb_concepts=job.latents, top_k=job.k, device="cpu"), 0.0
        else:
            self.sae, penalty = SAE(width, nb_concepts=job.latents, device="cpu"), job.l1 / (job.batch * width)
        self.criterion = partial(mse_l1, penalty=penalty)
        self.adam = torch.optim.Adam(self.sae.parameters(), lr=job.lr or 5e-4)
        self.scale = float(np.var(rows[:65536], axis=0, dtype=np.float64).mean()) ** -0.5

    def step(self, batch: Tensor) -> None:
        self.run(iter([batch]))

    def run(self, batches: Iterator[Tensor]) -> None:
        scaled = (batch * self.scale for batch in batches)
        train_sae(self.sae, scaled, self.criterion, self.adam, nb_epochs=1, device="cpu")

    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.sae.eval()
        _, code, made = self.sae(x * self.scale)
        self.sae.train()
        return made / self.scale, code


make = Overcomplete

if __name__ == "__main__":
    serve(make)
