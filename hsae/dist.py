"""Several processes that train as one, started by torchrun. For a process of its own, `ALONE`, nothing here computes.

A training's ranks form a grid, [data, latent]. Ranks of one column hold the same latents and share out the tokens of a
batch; ranks of one row see the same tokens and share out the dictionary. So what is summed over tokens is summed over
`Grid.data`, and what is summed or sought over latents over `Grid.latent`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
from jaxtyping import Shaped
from torch import Tensor

from hsae.errors import Elsewhere, UserError
from hsae.memory import Agreement
from hsae.ranks import ALONE, Group, Ranks
from hsae.rendezvous import join

# One rank may make baselines or write a large checkpoint while the others wait.
PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class Grid:
    """A training's ranks: those that share a batch, those that share a dictionary, and all of them."""

    data: Ranks = ALONE
    latent: Ranks = ALONE
    everyone: Ranks = ALONE
    agreement: Agreement = field(default_factory=Agreement)

    def total(self, value: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """The sum over all ranks, of what each has of its tokens and its latents."""
        return self.data.sum(self.latent.sum([value]))[0]


ONE = Grid()
"""a process of its own"""


def launched() -> tuple[int, int]:
    """This process's rank and the number of ranks, as torchrun tells them; (0, 1) for a process of its own."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def grid(latent_ranks: int = 1) -> Iterator[Grid]:
    """Join the other ranks that torchrun started, and leave them at the end.

    NCCL connects CUDA devices, Gloo processors. Ranks of `data` and `latent` agree before every message, while that is
    asked, so that one that runs out of memory can have all begin a step again.

    Args:
        latent_ranks: how many ranks share out a dictionary.

    Raises:
        UserError: the ranks do not make a grid of that shape; the first says so.
    """
    rank, size = launched()
    if size % latent_ranks:
        wanted = f"a divisor of the number of processes, {size} (torchrun --nproc-per-node starts more)"
        raise Elsewhere if rank else UserError(f"--latent-ranks must be {wanted}, not {latent_ranks}")
    if size == 1:
        yield Grid()
        return
    import torch.distributed as dist

    both = torch.cuda.is_available() and dist.is_nccl_available()
    join(rank, size, "cpu:gloo,cuda:nccl" if both else "gloo", PATIENCE)
    try:
        yield shaped(latent_ranks)
    finally:
        dist.destroy_process_group()


def shaped(latent_ranks: int) -> Grid:
    """The grid of ranks that have joined, `latent_ranks` of them to a dictionary."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    # The mesh only names the ranks: a device is chosen later, and each backend serves its own.
    shape = (dist.get_world_size() // latent_ranks, latent_ranks)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("data", "latent"))
    data, latent = (mesh.get_group(name) if mesh.size(i) > 1 else None for i, name in enumerate(("data", "latent")))
    every = dist.group.WORLD
    agreement = Agreement(Group(latent) if latent else ALONE, Group(every) if data else ALONE)
    return Grid(
        Group(data, agreement.all) if data else ALONE,
        Group(latent, agreement.here) if latent else ALONE,
        Group(every),
        agreement,
    )
