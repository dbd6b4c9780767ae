"""What a dictionary over several ranks costs: numbers sent for a token, memory of a rank, and what DTensor would send.

torchrun --nproc-per-node 2 benchmarks/sharded.py
"""

from __future__ import annotations

import resource
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.debug import CommDebugMode

from hsae.config import build
from hsae.dist import Grid, grid
from hsae.learner import Learner, Moment, accumulate
from hsae.ranks import ALONE, Group, Ranks
from hsae.setup import Setup

WIDTH, TOKENS, LATENTS, WIDE = 256, 1024, 8192, 65_536
BP = {"encoder": "backprop", "decoder": "backprop"}
SETUPS: dict[str, dict[str, Any]] = {
    "bp, relu": BP,
    "bp, topk of 32": BP | {"sae": {"kind": "topk", "k": 32}},
    "bp, topk and auxk": BP | {"sae": {"kind": "topk", "k": 32}, "revive": {"kind": "auxk", "tokens": 1}},
    "bp, batchtopk": BP | {"sae": "batchtopk"},
    "bp, matryoshka": BP | {"sae": "matryoshka"},
    "bp, jumprelu": BP | {"sae": "jumprelu"},
    "bp, gated": BP | {"sae": "gated"},
    "delta and residual, topk of 32": {"encoder": "delta", "decoder": "residual", "sae": {"kind": "topk", "k": 32}},
    "oja, tied": {"encoder": "oja", "tied": True},
    "wta, tied": {"encoder": "wta", "tied": True},
    "softhebb, tied": {"encoder": "softhebb", "tied": True},
    "krotov-hopfield, tied": {"encoder": "krotov-hopfield", "tied": True},
    "subspace, tied": {"encoder": "subspace", "tied": True},
    "sanger, tied": {"encoder": "sanger", "tied": True},
}


class Counting(Group):
    """Counts the numbers that a rank hands to the others."""

    sent = 0

    def sum(self, values: Any) -> list[Tensor]:
        self.sent += sum(value.numel() for value in values)
        return super().sum(values)

    def largest(self, value: Tensor) -> Tensor:
        self.sent += value.numel()
        return super().largest(value)

    def gather(self, value: Tensor) -> list[Tensor]:
        self.sent += value.numel()
        return super().gather(value)


def step(setup: dict[str, Any], latents: int, ranks: Ranks, steps: int) -> Learner:
    learner = Learner("x", build(Setup, setup, "benchmark"), 0, latents, torch.zeros(WIDTH), ranks=ranks)
    x = torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))
    for number in range(1, steps + 1):
        dead = None if learner.setup.revive is None else torch.arange(len(learner.weights["encoder"].W)) % 4 == 0
        moment, statistics = Moment(number, steps, dead), {}
        learner.begin(x, moment, grid=Grid(latent=ranks, everyone=ranks))
        for forward in learner.forwards(x):
            accumulate(statistics, learner.statistics(forward))
        learner.update(statistics, moment)
    return learner


def by_dtensor(size: int) -> None:
    """What DTensor's own operations gather of [token, latent], with the latents over ranks."""
    mesh = init_device_mesh("cpu", (size,))
    u = DTensor.from_local(torch.randn(TOKENS, LATENTS // size), mesh, [Shard(1)])
    for name, operation in {
        "softmax": lambda: torch.softmax(u, 1),
        "topk": lambda: u.topk(32, dim=1)[0],
        "max": lambda: u.max(1)[0],
        "sum": lambda: u.sum(1),
    }.items():
        with CommDebugMode() as mode:
            made: Any = operation()
        calls = ", ".join(f"{str(call).split('.')[-1]} × {count}" for call, count in mode.get_comm_counts().items())
        if not dist.get_rank():
            print(
                f"DTensor {name}: {calls or 'nothing yet'}; then {made.placements}, {tuple(made.to_local().shape)} here"
            )


def main() -> None:
    torch.set_num_threads(1)
    with grid() as processes:
        size = processes.everyone.size
        ranks = Counting(dist.group.WORLD) if size > 1 else ALONE
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        learner = step(BP, WIDE, ranks, 2)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        parts = (*(w.items() for w in learner.weights.values()), *learner.state.values())
        held = sum(value.numel() * value.element_size() for part in parts for value in part.values())
        if not processes.everyone.rank:
            print(f"{WIDE:,} latents, ranks {size}: {held >> 20} MiB of weights and state, peak {peak >> 10} MiB")
        if isinstance(ranks, Counting):
            for name, setup in SETUPS.items():
                step(setup, LATENTS, ranks, 1)
                ranks.sent = 0
                step(setup, LATENTS, ranks, 1)
                if not ranks.rank:
                    print(f"{name}: {ranks.sent / TOKENS:.0f} numbers for each of {TOKENS} tokens", flush=True)
            by_dtensor(size)


if __name__ == "__main__":
    main()
