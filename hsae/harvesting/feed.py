"""Tokenised batches, made by a thread while the model computes."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from hsae.harvesting.packing import Cursor, Rows

# Seconds to wait for the thread when the rest of its work is not wanted any more.
PATIENCE = 5.0


@dataclass(frozen=True)
class Batch:
    """Rows for one pass of the model; `lengths` tells padding, `cursor` the place in the text behind the last row."""

    tokens: Int[Tensor, "sequence position"]
    lengths: Int[Tensor, " sequence"]
    cursor: Cursor


class Feed(Iterator[Batch]):
    """Batches of a text, in order, made ahead by a thread. A context manager that ends the thread.

    Args:
        rows: the text's rows.
        sizes: rows of each batch; the last one comes out smaller where the text ends.
        ahead: how many batches are made ahead, at most.

    Raises:
        UserError: (while iterating) what `rows` raises.
    """

    def __init__(self, rows: Rows, sizes: Iterator[int], ahead: int) -> None:
        self._rows, self._sizes = rows, sizes
        self._made: queue.Queue[Batch | BaseException | None] = queue.Queue(max(1, ahead))
        self._unwanted, self._peeked = False, list[Batch | None]()
        self._thread = threading.Thread(target=self._work, name="tokenise", daemon=True)
        self._thread.start()

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *_: object) -> None:
        self._unwanted, start = True, time.monotonic()
        # Ended in the middle of a library's work, a thread can take the whole process with it.
        while self._thread.is_alive() and time.monotonic() - start < PATIENCE:
            if not self._made.empty():
                self._made.get()  # it may be waiting for room
            self._thread.join(0.01)

    @property
    def duplicates(self) -> int:
        """Documents dropped as duplicates; all of them once the batches have ended."""
        return self._rows.duplicates

    def peek(self) -> Batch | None:
        """The next batch, which still comes; None at the end."""
        if not self._peeked:
            self._peeked.append(self._take())
        return self._peeked[0]

    def __next__(self) -> Batch:
        batch = self.peek()
        if batch is None:
            raise StopIteration
        self._peeked.clear()
        return batch

    def _take(self) -> Batch | None:
        made = self._made.get()
        if isinstance(made, BaseException):
            raise made
        return made

    def _work(self) -> None:
        try:
            for batch in self._batches():
                self._made.put(batch)
                if self._unwanted:
                    return
            self._made.put(None)
        except BaseException as error:  # whatever it is, it belongs to whoever takes the batches
            self._made.put(error)

    def _batches(self) -> Iterator[Batch]:
        for size in self._sizes:
            part = list(itertools.islice(self._rows, size))
            if not part:
                return
            tokens = torch.from_numpy(np.stack([row.tokens for row in part]))
            yield Batch(tokens, torch.tensor([row.length for row in part]), part[-1].cursor)
