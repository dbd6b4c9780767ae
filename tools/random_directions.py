"""A run whose SAE was not trained: random directions, each firing as often as a latent of a trained SAE does.

    python tools/random_directions.py stories260k bp        # makes the run stories260k-random-bp
    hsae interpret --run stories260k-random-bp

The floor for scores of explanations. Latent j's encoder row is a random unit vector, applied to the activations less
their mean; its bias lets it fire as often as latent j of the trained SAE, over the store's first 262,144 positions.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch

from hsae.evidence import open_index, open_subject
from hsae.files import cache_root
from hsae.run import Run, RunWriter
from hsae.sae import SAE
from hsae.store import Store

POSITIONS = 262_144
run, setup = sys.argv[1:3]
subject = open_subject(run, setup)
rate = torch.tensor(open_index(subject).rate)
trained = Run(subject.record.folder)
sae = trained.sae(setup, subject.row.seed)
store = Store(subject.folder)
sequences = POSITIONS // store.manifest.context
x = torch.cat([chunk.activations[chunk.keep] for chunk in store.chunks(subject.hook, 64, 0, sequences)]) * sae.scale
mean = x.mean(0)
W = torch.nn.functional.normalize(
    torch.randn(sae.latents, sae.width, generator=torch.Generator().manual_seed(0)), dim=1
)
bias = torch.full((sae.latents,), -1e30)
for block in rate.nonzero().flatten().split(64):
    drives = ((x - mean) @ W[block].T).sort(0, descending=True).values
    at = (rate[block] * len(x)).round().long().clamp(0, len(x) - 1)
    bias[block] = -drives.gather(0, at[None])[0] - W[block] @ mean
random = SAE(W, bias, W.clone(), torch.zeros(sae.width), sae.variant, sae.scale)
result = replace(trained.result, rows=(replace(subject.row, setup="random"),), scale=sae.scale)
writer = RunWriter(cache_root() / "runs" / f"{run}-random-{setup}", {"setup": {"random": trained.tables[setup]}})
print(writer.finish({("random", subject.row.seed): random}, result).folder)
