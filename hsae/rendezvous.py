"""Joining the processes that torchrun started, for the first time or again.

Torchrun's store of addresses outlives the processes: one that is started again would find those of its dead
predecessors there, and wait for them for ever. So the processes first agree on a word that is new, under which their
addresses then stand.
"""

from __future__ import annotations

import json
import time
import uuid
from datetime import timedelta
from typing import Any

from hsae.errors import Elsewhere
from hsae.interrupt import killable

# Seconds between two looks; the waiting is Python's, so that Ctrl-C ends it.
PAUSE = 0.02


def join(rank: int, size: int, backend: str, timeout: timedelta) -> None:
    """Initialise `torch.distributed` with the other processes.

    Args:
        rank: this process's number.
        size: how many there are.
        backend: what carries messages.
        timeout: after which a message has failed.

    Raises:
        Elsewhere: another process ended before it had joined.
    """
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    try:
        with killable():
            store, _, _ = next(rendezvous("env://", timeout=timeout))
        word = _lead(store, size) if rank == 0 else _follow(store, rank)
        store = PrefixStore(word, store)
        with killable():
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    except RuntimeError:  # whatever the backend says, the cause is told where it happened
        raise Elsewhere("another of the processes has ended; give the same command again to go on") from None


def _lead(store: Any, size: int) -> str:
    """Rank 0's part: the word holds once every process that has said who it is has heard it."""
    names: list[str] = []
    word = ""
    while True:
        seen = [_read(store, f"name {rank}") for rank in range(1, size)]
        if all(seen) and seen != names:
            # All are there, but some names may be those of the dead, until the living write theirs.
            names, word = seen, uuid.uuid4().hex
            store.set("word", json.dumps([word, *names]))
        if names and all(_read(store, f"heard {rank}") == word for rank in range(1, size)):
            store.set("agreed", word)
            return word
        time.sleep(PAUSE)


def _follow(store: Any, rank: int) -> str:
    """The others' part."""
    name, heard = uuid.uuid4().hex, ""
    store.set(f"name {rank}", name)
    while True:
        word, *names = json.loads(_read(store, "word") or '[""]')
        if names and names[rank - 1] == name and word != heard:
            heard = word
            store.set(f"heard {rank}", heard)
        if heard and _read(store, "agreed") == heard:
            return heard
        time.sleep(PAUSE)


def _read(store: Any, key: str) -> str:
    """Empty if it is not there."""
    return store.get(key).decode() if store.check([key]) else ""
