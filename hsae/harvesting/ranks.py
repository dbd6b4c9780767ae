"""Several processes that harvest one store, started by torchrun: each computes shards of its own.

They meet only when they begin and when they are done; a meeting is waited for in Python, so that Ctrl-C ends it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch

from hsae.dist import launched
from hsae.errors import Elsewhere, UserError
from hsae.rendezvous import join

# The first to be done waits for the last as long as it takes.
PATIENCE = timedelta(days=365)
# Seconds between two looks.
PAUSE = 0.02


class Crew:
    """The processes of one harvest; here there is one.

    Attributes:
        rank: this process's number among them.
        size: how many they are.
    """

    rank: int = 0
    size: int = 1

    def meet(self, *numbers: int, meanwhile: Callable[[], None] = lambda: None) -> list[tuple[int, ...]]:
        """Wait for all of them; what each brings along.

        Args:
            numbers: as many at each.
            meanwhile: done again and again while waiting.

        Raises:
            Elsewhere: one of them has ended.
        """
        return [numbers]

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """What fails at one fails at all, before any of them goes on; one of them says it.

        Raises:
            UserError: from the body, at the first where it failed; `Elsewhere` at the others.
        """
        problem = None
        try:
            yield
        except UserError as error:
            problem = error
        failed = [rank for rank, (bad,) in enumerate(self.meet(int(problem is not None))) if bad]
        if problem is not None and failed[0] == self.rank:
            raise problem
        if failed:
            raise Elsewhere

    @contextmanager
    def first(self) -> Iterator[None]:
        """Rank 0 does it, then the others."""
        if self.rank:
            self.meet()
        try:
            yield
        finally:
            if not self.rank:
                self.meet()


class Torchrun(Crew):
    """The processes that torchrun started, when they have joined `torch.distributed`."""

    def __init__(self) -> None:
        self.rank, self.size = launched()

    def meet(self, *numbers: int, meanwhile: Callable[[], None] = lambda: None) -> list[tuple[int, ...]]:
        import torch.distributed as dist

        mine = torch.tensor([0, *numbers])
        found = [torch.empty_like(mine) for _ in range(self.size)]
        try:
            work = dist.all_gather(found, mine, async_op=True)
            assert work is not None
            while not work.is_completed():
                meanwhile()
                time.sleep(PAUSE)
            work.wait()
        except RuntimeError:  # whatever the backend says, the cause is told where it happened
            raise Elsewhere("another of the processes has ended; give the same command again to go on") from None
        return [tuple(each[1:].tolist()) for each in found]


@contextmanager
def crew() -> Iterator[Crew]:
    """Join the other processes that torchrun started, if it did, and leave them at the end."""
    rank, size = launched()
    if size == 1:
        yield Crew()
        return
    import torch.distributed as dist

    join(rank, size, "gloo", PATIENCE)
    try:
        yield Torchrun()
    finally:
        dist.destroy_process_group()
