"""dictionary_learning: `StandardTrainer` and `TopKTrainer`, driven as its `trainSAE` does, on batches from memory.

Activations are divided to a mean squared norm of 1 (its `normalize_activations`, which its documentation recommends),
in place, inside the clock. The L1 penalty is on Σ|code| with decoder columns of unit norm, against ‖x̂ - x‖² summed over
dimensions. The rise of the learning rate and of the penalty, 1,000 and 2,000 steps by default, is `warmup` (5 unless
the options say otherwise), since no benchmark has thousands of steps.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from peers.job import Job
from peers.worker import Trainee, bare, serve

# Its own __init__ imports nnsight, for harvesting.
bare("dictionary_learning", "dictionary_learning.trainers")

from dictionary_learning.trainers.standard import StandardTrainer  # noqa: E402  # pyright: ignore
from dictionary_learning.trainers.top_k import TopKTrainer  # noqa: E402  # pyright: ignore


class DictionaryLearning(Trainee):
    package = "dictionary-learning"

    def __init__(self, job: Job, rows: np.ndarray) -> None:
        warmup = int(job.options.get("warmup", 5))
        common = {
            "steps": max(job.steps, warmup + 1),
            "activation_dim": rows.shape[1],
            "dict_size": job.latents,
            "layer": 0,
            "lm_name": "benchmark",
            "warmup_steps": warmup,
            "seed": job.seed,
            "device": "cpu",
        }
        if job.task == "topk":
            self.trainer = TopKTrainer(k=job.k, lr=job.lr, **common)
        else:
            self.trainer = StandardTrainer(l1_penalty=job.l1, sparsity_warmup_steps=warmup, lr=job.lr or 1e-3, **common)
        sample = np.array(rows[:65536], dtype=np.float64)
        self.norm = float(np.sqrt(np.square(sample).sum(1).mean()))
        self.done = 0

    def step(self, batch: Tensor) -> None:
        batch /= self.norm
        self.trainer.update(self.done, batch)
        self.done += 1

    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        made, code = self.trainer.ae(x / self.norm, output_features=True)
        return made * self.norm, code


make = DictionaryLearning

if __name__ == "__main__":
    serve(make)
