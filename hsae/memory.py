"""When memory runs out."""

from __future__ import annotations

import torch

from hsae.dist import OutOfMemory

# How PyTorch and the C++ library say it where they have no exception of its own for it.
WORDS = ("can't allocate memory", "bad_alloc")


def ran_out(error: BaseException) -> bool:
    """Whether an exception says that a device's memory, or the machine's, did not suffice: here or at another rank."""
    if isinstance(error, RuntimeError) and any(word in str(error) for word in WORDS):
        return True
    return isinstance(error, torch.OutOfMemoryError | MemoryError | OutOfMemory)
