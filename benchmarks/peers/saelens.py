"""sae-lens: its `SAETrainer`, step by step as its `fit` does it, on batches from memory.

Option `compile`: the forward pass through torch.compile, as its runner's `compile_sae` does. Activations are scaled as
its `expected_average_only_in` does: to a mean norm of √width. The L1 penalty is on Σ code · ‖W_dec row‖, not divided by
the width, at that scale. Learning rates neither rise nor fall.
"""

from __future__ import annotations

import numpy as np
import torch
from sae_lens.config import LoggingConfig, SAETrainerConfig  # pyright: ignore[reportMissingImports]
from sae_lens.saes.standard_sae import (  # pyright: ignore[reportMissingImports]
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
)
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig  # pyright: ignore[reportMissingImports]
from sae_lens.training.sae_trainer import SAETrainer  # pyright: ignore[reportMissingImports]
from torch import Tensor

from peers.job import Job
from peers.worker import Trainee, held, serve


class SaeLens(Trainee):
    package = "sae-lens"

    def __init__(self, job: Job, rows: np.ndarray) -> None:
        common = {
            "d_in": rows.shape[1],
            "d_sae": job.latents,
            "device": "cpu",
            "normalize_activations": "expected_average_only_in",
        }
        if job.task == "topk":
            self.sae = TopKTrainingSAE(TopKTrainingSAEConfig(k=job.k, **common))
        else:
            self.sae = StandardTrainingSAE(StandardTrainingSAEConfig(l1_coefficient=job.l1, **common))
        settings = SAETrainerConfig(
            total_training_samples=job.steps * job.batch,
            train_batch_size_samples=job.batch,
            lr=job.lr or 3e-4,
            lr_end=job.lr or 3e-4,
            logger=LoggingConfig(log_to_wandb=False),
        )
        self.trainer = SAETrainer(settings, self.sae, data_provider=iter(()))
        sample = torch.from_numpy(np.array(rows[:65536]))
        self.scale = rows.shape[1] ** 0.5 / sample.norm(dim=1).mean().item()
        self.trainer.activation_scaler.scaling_factor = self.scale
        if job.options.get("compile"):
            self.sae.training_forward_pass = torch.compile(self.sae.training_forward_pass)

    def step(self, batch: Tensor) -> None:
        self.trainer.maybe_reset_sparsity()
        self.trainer.step(batch)
        self.trainer.n_training_steps += 1

    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = self.sae.encode(x * self.scale)
        return self.sae.decode(code) / self.scale, code

    def tensors(self) -> dict[str, int]:
        return held(self.sae.parameters(), self.trainer.optimizer)


make = SaeLens

if __name__ == "__main__":
    serve(make)
