"""Tokenised batches of some of a store's shards, made by a thread while the model computes."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from hsae.harvesting.packing import Cursor, Packing
from hsae.harvesting.text import Source

# Seconds to wait for the thread when the rest of its work is not wanted any more.
PATIENCE = 5.0
# Seconds between two looks at whether the user is impatient.
PAUSE = 0.2
# How many tokens are made ahead of the model: a few times what the tokeniser makes at once.
TOKENS_AHEAD = 1 << 17
# Rows of shards that are not wanted, read at once.
SKIPPED = 256


@dataclass(frozen=True)
class Layout:
    """How a store's sequences lie in shards.

    Attributes:
        sequences: of the whole store, where the text does not run out.
        shard: sequences in a shard; the last one may have fewer.
        batch: sequences in a batch. No batch lies in two shards.
    """

    sequences: int
    shard: int
    batch: int

    @property
    def shards(self) -> int:
        """How many there are."""
        return -(-self.sequences // self.shard)

    def sequences_of(self, index: int) -> range:
        """The sequences of a shard."""
        return range(index * self.shard, min((index + 1) * self.shard, self.sequences))


@dataclass(frozen=True)
class Batch:
    """Rows for one pass of the model.

    Attributes:
        shard: which one they belong to.
        tokens: token ids.
        lengths: positions of each row that are no padding.
        start: the place in the text before the first row.
        cursor: the place behind the last one.
    """

    shard: int
    tokens: Int[Tensor, "sequence position"]
    lengths: Int[Tensor, " sequence"]
    start: Cursor
    cursor: Cursor


class Feed(Iterator[Batch]):
    """Batches of some shards, in order, made ahead by a thread. A context manager that ends the thread.

    Args:
        packing: how documents become rows.
        source: the documents.
        tokenizer: a transformers tokeniser.
        layout: where the rows belong.
        shards: those wanted, ascending.
        known: for some shards the place in the text where they start, so that what is before need not be tokenised.

    Attributes:
        impatient: asked while nothing is ready; if it says so, the waiting ends with KeyboardInterrupt.
        ended: how many sequences the whole text makes, once the reading has come to its end; None before.

    Raises:
        UserError: (while iterating) what `Rows` raises.
    """

    def __init__(
        self,
        packing: Packing,
        source: Source,
        tokenizer: Any,
        layout: Layout,
        shards: Sequence[int],
        known: Mapping[int, Cursor],
    ) -> None:
        self.ended: int | None = None
        self.impatient: Callable[[], bool] = lambda: False
        self._layout, self._shards, self._known = layout, shards, {0: Cursor(), **known}
        self._first = max((shard for shard in self._known if shards and shard <= shards[0]), default=0)
        self._rows = packing.rows(source, tokenizer, self._known[self._first])
        ahead = max(1, TOKENS_AHEAD // (layout.batch * packing.context))
        self._made: queue.Queue[Batch | BaseException | None] = queue.Queue(ahead)
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
        """Documents dropped as duplicates; all of them once the text has ended."""
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
        while True:
            try:
                made = self._made.get(timeout=PAUSE)
                break
            except queue.Empty:
                if self.impatient():
                    raise KeyboardInterrupt from None
        if isinstance(made, BaseException):
            raise made
        return made

    def _work(self) -> None:
        try:
            for batch in self._batches():
                if batch is not None:
                    self._made.put(batch)
                if self._unwanted:
                    return
            self._made.put(None)
        except BaseException as error:  # whatever it is, it belongs to whoever takes the batches
            self._made.put(error)

    def _batches(self) -> Iterator[Batch | None]:
        """The batches, and None now and then while rows that nobody wants go by."""
        place, cursor = self._first * self._layout.shard, self._known[self._first]
        for shard in self._shards:
            wanted = self._layout.sequences_of(shard)
            if shard in self._known and place < wanted.start:
                place, cursor = wanted.start, self._known[shard]
                self._rows.skip_to(cursor)
            while place < wanted.stop:
                skipping = place < wanted.start
                size = min(SKIPPED, wanted.start - place) if skipping else min(self._layout.batch, wanted.stop - place)
                part = list(itertools.islice(self._rows, size))
                if part:
                    start, cursor = cursor, part[-1].cursor
                    if skipping:
                        yield None
                    else:
                        tokens = torch.from_numpy(np.stack([row.tokens for row in part]))
                        yield Batch(shard, tokens, torch.tensor([row.length for row in part]), start, cursor)
                place += len(part)
                if len(part) < size:
                    self.ended = place
                    return
