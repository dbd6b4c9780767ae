"""Several processes that train as one, started by torchrun. For a process of its own, `ALONE`, nothing here computes.

A training's ranks form a grid, [data, latent]. Ranks of one column hold the same latents and share out the tokens of a
batch; ranks of one row see the same tokens and share out the dictionary. So what is summed over tokens is summed over
`Grid.data`, and what is summed or sought over latents over `Grid.latent`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from hsae.errors import Elsewhere, UserError
from hsae.rendezvous import join

# One rank may make baselines or write a large checkpoint while the others wait.
PATIENCE = timedelta(hours=2)
# Tensors of fewer numbers share a message.
SMALL = 1 << 16


class OutOfMemory(Exception):
    """Another rank ran out of memory, and all are to begin the step again.

    Args:
        heard: whether all ranks know of it.
    """

    def __init__(self, heard: bool) -> None:
        super().__init__()
        self.heard = heard


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

    def collect(self, value: Shaped[Tensor, "..."]) -> list[Tensor] | None:
        """Every rank's tensor, in their order and on the processor, at the first rank; None at the others."""
        return [value]

    def any(self, flag: bool) -> bool:
        """Whether any rank says so."""
        return flag

    def share(self, total: int) -> slice:
        """This rank's part of so many things in a row; the parts are as equal as can be."""
        return slice(total * self.rank // self.size, total * (self.rank + 1) // self.size)

    def apart(self) -> Ranks:
        """The same ranks, for the messages of another thread. All must call it, in one order with other messages."""
        return self

    @contextmanager
    def first(self) -> Iterator[None]:
        """Rank 0 does it, then the others do. Where rank 0 fails, they do not begin.

        Raises:
            Elsewhere: at the others, if it failed.
        """
        if self.rank and self.any(False):
            raise Elsewhere
        try:
            yield
        except BaseException:
            if not self.rank:
                with suppress(Elsewhere):
                    self.any(True)
            raise
        if not self.rank:
            self.any(False)


ALONE = Ranks()


class Group(Ranks):
    """Ranks of a process group of `torch.distributed`.

    Args:
        group: the process group.
        agree: what every rank calls before `sum`, `largest`, `gather` and `any` send, when all memory that they need
            is there.

    Raises:
        Elsewhere: (in every method) one of them has ended.
    """

    def __init__(self, group: Any, agree: Callable[[], None] = lambda: None) -> None:
        import torch.distributed as dist

        self._group, self._dist, self._agree = group, dist, agree
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def sum(self, values: Sequence[Tensor]) -> list[Tensor]:
        # Two statistics may be one tensor. Small ones go as one message: each costs a round through all ranks.
        unlike = {id(value): value.detach() for value in values}
        shared: dict[Any, list[int]] = {}
        for key, value in unlike.items():
            shared.setdefault((value.dtype, value.device) if value.numel() < SMALL else key, []).append(key)
        messages = [torch.cat([unlike[key].reshape(-1) for key in keys]) for keys in shared.values()]
        self._agree()
        found: dict[int, Tensor] = {}
        for keys, message in zip(shared.values(), messages, strict=True):
            self._reduce(message, self._dist.ReduceOp.SUM)
            parts = message.split([unlike[key].numel() for key in keys])
            found |= {key: part.view(unlike[key].shape) for key, part in zip(keys, parts, strict=True)}
        return [found[id(value)] for value in values]

    def largest(self, value: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        value = value.detach().clone(memory_format=torch.contiguous_format)
        self._agree()
        self._reduce(value, self._dist.ReduceOp.MAX)
        return value

    def gather(self, value: Shaped[Tensor, "..."]) -> list[Tensor]:
        lengths = torch.zeros(self.size, dtype=torch.int64)
        lengths[self.rank] = len(value)
        self._agree()
        self._reduce(lengths, self._dist.ReduceOp.SUM)
        # Gloo wants pieces of one size.
        padded = value.new_zeros(int(lengths.max()), *value.shape[1:])
        padded[: len(value)] = value.detach()
        parts = [torch.empty_like(padded) for _ in lengths]
        self._agree()
        with _reached():
            self._dist.all_gather(parts, padded, self._group)
        return [part[:length] for part, length in zip(parts, lengths.tolist(), strict=True)]

    def collect(self, value: Shaped[Tensor, "..."]) -> list[Tensor] | None:
        lengths = torch.zeros(self.size, dtype=torch.int64)
        lengths[self.rank] = len(value)
        self._reduce(lengths, self._dist.ReduceOp.SUM)
        padded = torch.zeros(int(lengths.max()), *value.shape[1:], dtype=value.dtype)
        padded[: len(value)] = value.detach()
        parts = None if self.rank else [torch.empty_like(padded) for _ in lengths]
        with _reached():
            self._dist.gather(padded, parts, group=self._group, group_dst=0)
        return parts and [part[:length] for part, length in zip(parts, lengths.tolist(), strict=True)]

    def any(self, flag: bool) -> bool:
        # On the processor, so that no rank waits for its GPU.
        said = torch.tensor(float(flag))
        self._agree()
        self._reduce(said, self._dist.ReduceOp.MAX)
        return bool(said)

    def apart(self) -> Ranks:
        return Group(self._dist.new_group(backend="gloo"))

    def _reduce(self, value: Tensor, op: Any) -> None:
        with _reached():
            self._dist.all_reduce(value, op, self._group)


@contextmanager
def _reached() -> Iterator[None]:
    """A message to the other ranks."""
    try:
        yield
    except RuntimeError:  # whatever the backend says, the cause is told where it happened
        raise Elsewhere("another of the processes has ended; give the same command again to go on") from None


@dataclass
class Agreement:
    """That all ranks have had the memory for their part so far, asked before every message within a step.

    A rank that runs out says so in place of its next message. Those that share a dictionary all come to the same
    messages, so they ask each other; they may be in different micro-batches than others, whom they ask where tokens are
    summed over.

    Attributes:
        latent: the ranks that share a dictionary.
        everyone: all ranks, where there are more.
        asked: whether it is asked now; otherwise a rank that runs out of memory can only end.
    """

    latent: Ranks = ALONE
    everyone: Ranks = ALONE
    asked: bool = True

    def here(self) -> None:
        """Wait until every rank of the dictionary has come so far.

        Raises:
            OutOfMemory: one of them called `give_up` instead.
        """
        if self.asked and self.latent.any(False):
            raise OutOfMemory(heard=False)

    def all(self) -> None:
        """Wait until every rank has come so far.

        Raises:
            OutOfMemory: one of them called `give_up` instead.
        """
        self.here()
        if self.asked and self.everyone.any(False):
            raise OutOfMemory(heard=True)

    def give_up(self, error: BaseException) -> None:
        """Pass it on that memory ran out, here or at another rank: what the others wait for raises `OutOfMemory`."""
        if not isinstance(error, OutOfMemory):
            self.latent.any(True)
        if not (isinstance(error, OutOfMemory) and error.heard):
            self.everyone.any(True)


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
