"""hsae, as `hsae train` has it: the settings of the process first, then the one loop.

SoftHebb is the stock setup `hebb-tied` from rows of length 2, ReLU the stock setup `bp`. TopK is backpropagation with
the mean removed, decoder rows of unit norm that start as the encoder's, and β₂ = 0.98 (as `benchmarks/pareto.py` has
it), or, with the option `setup`, the stock setup of that name. Activations are scaled to the variance that the defaults
are made for, inside the clock. HSAE_KERNELS=torch keeps to the reference in PyTorch.
"""

from __future__ import annotations

from hsae.cli import _tune_process

# Before PyTorch is loaded, as the command does.
_tune_process()

from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from hsae.loop import Loop  # noqa: E402
from hsae.trainconfig import Normalise, TrainConfig  # noqa: E402
from peers.job import Job  # noqa: E402
from peers.worker import Trainee, serve  # noqa: E402

# Length of SoftHebb's rows at the start, as the shipped configs have it: from 1, the default, few activations fire any.
NORM = 2.0
# Rows that mean and variance are taken of.
SAMPLE = 65_536


class Ours(Trainee):
    package = "hsae"

    def __init__(self, job: Job, rows: np.ndarray) -> None:
        name, table = _setup(job, rows.shape[1])
        settings = TrainConfig.from_table(
            {
                "setups": [name],
                "setup": {name: table},
                "latents": job.latents,
                "batch_tokens": job.batch,
                "seeds": [job.seed],
                "device": "cpu",
                **job.options.get("train", {}),
            },
            "benchmark",
        )
        sample = torch.from_numpy(np.array(rows[:SAMPLE]))
        self.scale = (Normalise().variance / sample.double().var(0, correction=0).mean().item()) ** 0.5
        centre = sample.mean(0) * self.scale if settings.setup[name].centre == "mean" else torch.zeros(rows.shape[1])
        self.loop = Loop(settings, job.steps, {name: centre}, self.scale, sample[-4096:] * self.scale)

    def step(self, batch: Tensor) -> None:
        self.loop.advance(batch)

    def report(self) -> dict[str, Any]:
        if self.loop.diverged:
            raise RuntimeError(self.loop.diverged[0])
        return {}

    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        sae = self.loop.learners[0].sae(self.scale)
        code = sae.encode(x)
        return sae.decode(code), code

    def tensors(self) -> dict[str, int]:
        learner = self.loop.learners[0]
        parameters = [t for weights in learner.weights.values() for t in weights.items().values()]
        state = [t for synapse in learner.state.values() for t in synapse.values()]
        return {"parameters": sum(t.nbytes for t in parameters), "optimiser": sum(t.nbytes for t in state)}


def _setup(job: Job, width: int) -> tuple[str, dict[str, Any]]:
    """Name and settings of the setup that a job asks for."""
    rate = {} if job.lr is None else {"lr": job.lr}
    if job.task == "softhebb":
        return "hebb-tied", {"encoder": {"rule": "softhebb", **rate}, "init_std": NORM / width**0.5}
    if job.task == "relu":
        rule = {"rule": "backprop", **rate}
        return "bp", {"encoder": rule, "decoder": rule, "sae": {"kind": "relu", "l1": job.l1}}
    sae = {"kind": "topk", "k": job.k}
    if job.options.get("setup") == "residual-hebb":
        # Its rates do not fall: where the training ends is not known before.
        table = {"sae": sae, "schedule": {"decay": "none"}}
        return "residual-hebb", table | ({} if job.lr is None else {"decoder": {"rule": "residual", **rate}})
    rule = {"rule": "backprop", "beta2": 0.98, **rate}
    return "topk", {
        "encoder": rule,
        "decoder": rule,
        "sae": sae,
        "centre": "mean",
        "decoder_init": "encoder",
        "decoder_norm": "unit",
        "init_gain": True,
    }


make = Ours

if __name__ == "__main__":
    serve(make)
