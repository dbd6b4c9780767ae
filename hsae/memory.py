"""When memory runs out."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hsae.ranks import ALONE, Ranks

# How PyTorch and the C++ library say it where they have no exception of its own for it.
WORDS = ("can't allocate memory", "bad_alloc")


class OutOfMemory(Exception):
    """Another rank ran out of memory, and all are to begin the step again.

    Args:
        heard: whether all ranks know of it.
    """

    def __init__(self, heard: bool) -> None:
        super().__init__()
        self.heard = heard


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


def ran_out(error: BaseException) -> bool:
    """Whether an exception says that a device's memory, or the machine's, did not suffice: here or at another rank."""
    if isinstance(error, RuntimeError) and any(word in str(error) for word in WORDS):
        return True
    return isinstance(error, torch.OutOfMemoryError | MemoryError | OutOfMemory)
