"""Pools of a text's activations, one after the other: read, computed by all ranks together, and given in turn."""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hsae.errors import UserError
from hsae.harvesting.feed import Feed, Layout
from hsae.harvesting.finite import make_finite
from hsae.harvesting.packing import Cursor, Packing
from hsae.harvesting.passes import Passes
from hsae.harvesting.shard import Shard
from hsae.harvesting.text import Source
from hsae.lm import LM
from hsae.ranks import ALONE
from hsae.store.manifest import DTYPES
from hsae.store.rows import generator_of
from hsae.streaming.config import StreamConfig

# Seconds to wait for the thread when its pools are not wanted any more.
PATIENCE = 30.0


@dataclass(frozen=True)
class Place:
    """Where a pool begins.

    Attributes:
        row: the number of its first row, of all rows that are trained on.
        epoch: how often the text was read through before.
        pool: its number in the epoch.
        cursor: the place in the text.
    """

    row: int
    epoch: int
    pool: int
    cursor: Cursor

    @classmethod
    def of(cls, table: dict[str, Any]) -> Place:
        """From plain data, as `dataclasses.asdict` gives it."""
        return cls(table["row"], table["epoch"], table["pool"], Cursor(**table["cursor"]))


@dataclass(frozen=True)
class Pool:
    """Activations of some sequences, and the order in which those that count are trained on."""

    place: Place
    values: Float[Tensor, "position width"]
    order: Int[Tensor, "row"]


class Pools:
    """A text's pools.

    Args:
        config: what is read.
        lm: the model.
        source: the text.
        packing: how it becomes sequences.
        start: where in it an epoch begins.
        seed: of the order within pools.
        say: shows the user a line.

    Attributes:
        first: the place of the first pool.
        ranks: those that share the computing, by messages that nobody else sends.
    """

    def __init__(
        self,
        config: StreamConfig,
        lm: LM,
        source: Source,
        packing: Packing,
        start: Cursor,
        seed: int,
        say: Callable[[str], None],
    ) -> None:
        self.config, self.lm, self.source, self.packing, self.seed = config, lm, source, packing, seed
        self.first, self.ranks = Place(0, 0, 0, start), ALONE
        self._passes = Passes(config, lm, lm.widths(config.hooks), say)
        self.width = self._passes.widths[config.hook]
        # What harvesting calls a shard is here one batch: the part of a pool that one rank computes.
        self._layout = Layout(config.sequences, config.batch_sequences, config.batch_sequences)
        self._batches = config.pool_sequences(self.width) // config.batch_sequences

    def rooms(self) -> list[Float[Tensor, "position width"]]:
        """Memory for two pools."""
        positions = min(self._batches * self.config.batch_sequences, self.config.sequences) * self.config.context
        dtype = getattr(torch, DTYPES[self.config.dtype])
        return [torch.empty(positions, self.width, dtype=dtype) for _ in range(2)]

    def made(self, place: Place, producer: Producer) -> Iterator[Pool]:
        """The pools from a place on, epoch after epoch, each in a room of the producer's, while any are wanted."""
        begun = place.row
        while True:
            first, count = place.pool * self._batches, self._layout.shards
            mine = [i for i in range(first, count) if i % self._batches % self.ranks.size == self.ranks.rank]
            known = {0: self.first.cursor, first: place.cursor}
            with Feed(self.packing, self.source, self.lm.tokenizer, self._layout, mine, known) as feed:
                batches = self._passes.shards(feed, self._layout, lambda batch: None)
                more = True
                while more:
                    found = self._filled(batches, place, producer)
                    if found is None:
                        return
                    pool, after, more = found
                    yield pool
                    row, more = place.row + len(pool.order), more and (place.pool + 1) * self._batches < count
                    place = Place(row, place.epoch, place.pool + 1, after)
            if place.row == begun:
                raise UserError("no position of the text counts; loosen --stream.exclude-special, -first or -norm")
            begun, place = place.row, Place(place.row, place.epoch + 1, 0, self.first.cursor)

    def _filled(self, batches: Iterator[Shard], place: Place, producer: Producer) -> tuple[Pool, Cursor, bool] | None:
        """A pool, the place in the text behind it, and whether the text goes on there; None where a rank stops."""
        hook, context, ranks, done = self.config.hook, self.config.context, self.ranks, 0
        room = producer.room()
        keep, cursor, more, left = list[Tensor](), place.cursor, True, self._batches
        total = self._layout.sequences - place.pool * self._batches * self._layout.shard
        while more and left > 0 and done < total:
            batch = next(batches, None) if producer.wanted and ranks.rank < left else None
            size = 0 if batch is None else batch.sequences
            words = [int(not producer.wanted), size, *dataclasses.astuple(Cursor() if batch is None else batch.cursor)]
            said = torch.cat(ranks.gather(torch.tensor([words])))
            if bool(said[:, 0].any()):
                return None
            if batch is None:
                values, mask = room[:0], torch.empty(0, dtype=torch.bool)
            else:
                self._require_finite(batch)
                values, mask = batch.activations[hook].flatten(0, 1), batch.keep[hook].flatten()
            # As bytes: not every backend knows every type.
            for part in ranks.gather(values.view(torch.uint8)):
                part = part.view(room.dtype)
                room[done * context : done * context + len(part)] = part
                done += len(part) // context
            keep += [part.clone() for part in ranks.gather(mask)]
            sizes = said[: min(ranks.size, left), 1]
            whole = sizes == self._layout.shard
            if bool((sizes > 0).any()):
                cursor = Cursor(*said[int((sizes > 0).nonzero().max()), 2:].tolist())
            more, left = bool(whole.all()), left - ranks.size
        rows = torch.cat(keep).nonzero().squeeze(1)
        generator = generator_of(self.seed, "stream", place.epoch, place.pool)
        pool = Pool(place, room[: done * context], rows[torch.randperm(len(rows), generator=generator)])
        return pool, cursor, more

    def _require_finite(self, batch: Shard) -> None:
        if not all(bool(values.isfinite().all()) for values in batch.activations.values()):
            first = batch.index * self._layout.shard
            make_finite(batch, self.config, first, self.lm.tokenizer)


class Producer(Iterator[Pool]):
    """A thread that computes the next pool while one is used. A context manager that ends it.

    A pool holds until the next one is asked for.

    Attributes:
        wanted: whether there is still anybody who will take a pool.
    """

    def __init__(self, pools: Pools, place: Place) -> None:
        self._rooms = pools.rooms()
        self._free, self.wanted, self._turn = threading.Semaphore(2), True, 0
        self._made: queue.Queue[Pool | BaseException] = queue.Queue()
        self._given = False
        self._thread = threading.Thread(target=self._work, args=(pools, place), name="stream", daemon=True)
        self._thread.start()

    def __enter__(self) -> Producer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread."""
        self.wanted = False
        self._free.release()
        self._thread.join(PATIENCE)

    def __next__(self) -> Pool:
        if self._given:
            self._free.release()
        found = self._made.get()
        if isinstance(found, BaseException):
            raise found
        self._given = True
        return found

    def room(self) -> Float[Tensor, "position width"]:
        """Memory for a pool; waits until there is some, or nobody wants a pool any more."""
        self._free.acquire()
        self._turn = 1 - self._turn
        return self._rooms[self._turn]

    def _work(self, pools: Pools, place: Place) -> None:
        try:
            for pool in pools.made(place, self):
                self._made.put(pool)
        except BaseException as error:  # whatever it is, it belongs to whoever takes the pools
            self._made.put(error)
