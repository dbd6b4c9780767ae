"""Several processes that train as one, started by torchrun. For a process of its own, `ALONE`, nothing here computes.

A training's ranks form a grid, [data, latent]. Ranks of one column hold the same latents and share out the tokens of a
batch; ranks of one row see the same tokens and share out the dictionary. So what is summed over tokens is summed over
`Grid.data`, and what is summed or sought over latents over `Grid.latent`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from hsae.errors import UserError

# One rank may make baselines or write a large checkpoint while the others wait.
PATIENCE = timedelta(hours=2)


class Ranks:
    """Processes that compute one thing together. Here there is one, and every method gives what it is given.

    Attributes:
        rank: this process's number among them.
        size: how many they are.
    """

    rank: int = 0
    size: int = 1

    def sum(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The sum over ranks of each tensor, the same bits at every rank. What is given stays as it is."""
        return list(values)

    def largest(self, value: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """The elementwise maximum over ranks."""
        return value

    def gather(self, value: Shaped[Tensor, "..."]) -> list[Tensor]:
        """Every rank's tensor, in their order. First dimensions may differ, the others not."""
        return [value]

    def any(self, flag: bool) -> bool:
        """Whether any rank says so."""
        return flag

    def share(self, total: int) -> slice:
        """This rank's part of so many things in a row; the parts are as equal as can be."""
        return slice(total * self.rank // self.size, total * (self.rank + 1) // self.size)


ALONE = Ranks()


class Group(Ranks):
    """Ranks of a process group of `torch.distributed`.

    Args:
        group: the process group.
    """

    def __init__(self, group: Any) -> None:
        import torch.distributed as dist

        self._group, self._dist = group, dist
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def sum(self, values: Sequence[Tensor]) -> list[Tensor]:
        return [self._reduced(value, self._dist.ReduceOp.SUM) for value in values]

    def largest(self, value: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        return self._reduced(value, self._dist.ReduceOp.MAX)

    def _reduced(self, value: Tensor, op: Any) -> Tensor:
        value = value.detach().clone(memory_format=torch.contiguous_format)
        self._dist.all_reduce(value, op, self._group)
        return value

    def gather(self, value: Shaped[Tensor, "..."]) -> list[Tensor]:
        length = torch.zeros(self.size, dtype=torch.int64, device=value.device)
        length[self.rank] = len(value)
        lengths = self._reduced(length, self._dist.ReduceOp.SUM).tolist()
        # Gloo wants pieces of one size.
        padded = value.new_zeros(max(lengths), *value.shape[1:])
        padded[: len(value)] = value
        parts = [torch.empty_like(padded) for _ in lengths]
        self._dist.all_gather(parts, padded, self._group)
        return [part[:length] for part, length in zip(parts, lengths, strict=True)]

    def any(self, flag: bool) -> bool:
        return bool(self._reduced(torch.tensor(float(flag)), self._dist.ReduceOp.MAX))


@dataclass(frozen=True)
class Grid:
    """A training's ranks: those that share a batch, those that share a dictionary, and all of them."""

    data: Ranks = ALONE
    latent: Ranks = ALONE
    everyone: Ranks = ALONE


def launched() -> tuple[int, int]:
    """This process's rank and the number of ranks, as torchrun tells them; (0, 1) for a process of its own."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def grid(device: torch.device, latent_ranks: int = 1) -> Iterator[Grid]:
    """Join the other ranks that torchrun started, and leave them at the end.

    Args:
        device: where the training's tensors are: NCCL connects CUDA devices, Gloo processors.
        latent_ranks: how many ranks share out a dictionary.

    Raises:
        UserError: the ranks do not make a grid of that shape.
    """
    _, size = launched()
    if size % latent_ranks:
        raise UserError(
            f"{size} processes cannot share dictionaries {latent_ranks} at a time: give a divisor of {size}"
        )
    if size == 1:
        yield Grid()
        return
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        mesh = init_device_mesh(device.type, (size // latent_ranks, latent_ranks), mesh_dim_names=("data", "latent"))
        data, latent = (
            Group(mesh.get_group(name)) if mesh.size(i) > 1 else ALONE for i, name in enumerate(("data", "latent"))
        )
        yield Grid(data, latent, Group(dist.group.WORLD))
    finally:
        dist.destroy_process_group()
