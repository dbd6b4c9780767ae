"""Processes that compute one thing together, and what they send each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from hsae.errors import Elsewhere

# Tensors of fewer numbers share a message.
SMALL = 1 << 16


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
