"""The shuffled stream of a store's rows for training: bounded memory, deterministic, resumable."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hsae.errors import UserError
from hsae.store.direct import room
from hsae.store.manifest import DTYPES, keep_key

if TYPE_CHECKING:
    from hsae.store.reader import Store


@dataclass(frozen=True)
class _Visit:
    """A pool and where in its shuffled rows the reading begins."""

    shards: tuple[int, ...]
    epoch: int
    number: int
    skip: int


@dataclass(frozen=True)
class _Coming:
    """A pool that is being read. `rows` are whole once all of `parts` are done."""

    visit: _Visit
    rows: Float[Tensor, "row width"]
    order: Future[Int[Tensor, "row"]]
    parts: list[Future[None]]


class RowStream:
    """Training rows of one hook point in a shuffled order that is a pure function of the seed.

    Each epoch visits the shards in a new order, a pool of a few at a time, and shuffles all rows of a pool. The order
    can be entered at any row, so a training run needs to remember only how many rows it has seen. Memory: two pools,
    in the store's dtype, their orders, and a batch; a store that fits one pool takes one, and is read once.
    """

    def __init__(self, store: Store, hook: str, seed: int, held_out: int, pool_bytes: int) -> None:
        self.store, self.hook, self.seed = store, hook, seed
        self.width = store.manifest.hooks[hook].width
        self._dtype: torch.dtype = getattr(torch, DTYPES[store.manifest.dtype])
        self._take = self._trainable(held_out)
        counts = [count for _, count in self._take]
        self.rows_per_epoch = sum(counts)
        if self.rows_per_epoch == 0:
            raise UserError(f"store {store.name}: no rows beside the {held_out} held-out sequences; harvest more")
        # Counted as float32, so that the order of rows does not change with the dtype.
        self._pool_rows = max(pool_bytes // (4 * self.width), max(counts))
        self._whole: Tensor | None = None

    def _trainable(self, held_out: int) -> list[tuple[int, int]]:
        """For each shard, how many of its first sequences are trained on, and the rows that count in them."""
        take, left = [], self.store.manifest.sequences - held_out
        for shard in self.store.manifest.shards:
            sequences = max(0, min(shard.sequences, left))
            if sequences == shard.sequences:
                count = shard.kept[self.hook]
            else:
                (keep,) = self.store.read(shard, keep_key(self.hook))
                count = int(keep[:sequences].sum())
            take.append((sequences, count))
            left -= shard.sequences
        return take

    @property
    def dtype(self) -> torch.dtype:
        """The store's."""
        return self._dtype

    def shards(self) -> Iterator[Float[Tensor, "_ width"]]:
        """All training rows in the store's order, in its dtype, a shard at a time."""
        shards = self.store.manifest.shards
        for shard, following, (sequences, count) in zip(shards, (*shards[1:], None), self._take, strict=True):
            if count:
                if following is not None:
                    self.store.ahead(following)
                rows = torch.empty(count, self.width, dtype=self._dtype)
                self.store.fill(rows, shard, self.hook, sequences)
                yield rows

    def numbers(self, rows: int, start: int = 0) -> Iterator[Int[Tensor, "row"]]:
        """What `batches` gives, as the rows' numbers in the store's order."""
        counts = [count for _, count in self._take]
        first = [sum(counts[:i]) for i in range(len(counts))]
        parts: list[Tensor] = []
        for visit in self._visits(start):
            places = torch.cat([torch.arange(first[i], first[i] + counts[i]) for i in visit.shards])
            generator = generator_of(self.seed, "rows", visit.epoch, visit.number)
            left = places[torch.randperm(len(places), generator=generator)][visit.skip :]
            while len(left):
                part, left = left.split([wanted := min(rows - sum(map(len, parts)), len(left)), len(left) - wanted])
                parts.append(part)
                if sum(map(len, parts)) == rows:
                    yield torch.cat(parts)
                    parts = []

    def _pools(self, epoch: int) -> list[tuple[int, ...]]:
        """The shards of each pool of an epoch."""
        order = torch.randperm(len(self._take), generator=generator_of(self.seed, "shards", epoch)).tolist()
        pools, pool, rows = [], [], 0
        for index in order:
            count = self._take[index][1]
            if pool and rows + count > self._pool_rows:
                pools.append(tuple(sorted(pool)))
                pool, rows = [], 0
            pool.append(index)
            rows += count
        return [*pools, tuple(sorted(pool))]

    def _visits(self, row: int) -> Iterator[_Visit]:
        """The pools from the one that holds the given row on, for ever."""
        epoch, skip = divmod(row, self.rows_per_epoch)
        while True:
            for number, pool in enumerate(self._pools(epoch)):
                count = sum(self._take[i][1] for i in pool)
                if skip < count:
                    yield _Visit(pool, epoch, number, skip)
                skip = max(0, skip - count)
            epoch += 1

    def _begin(
        self, threads: ThreadPoolExecutor, visit: _Visit, current: _Coming | None, rooms: list[Tensor]
    ) -> _Coming:
        """Have threads read a pool into the room that is not in use, unless it is there already."""
        counts = [self._take[i][1] for i in visit.shards]
        total, parts = sum(counts), []
        if self._whole is not None:
            rows = self._whole
        elif current is not None and current.visit.shards == visit.shards:
            rows = current.rows
        else:
            if len(rooms) < 2:
                rooms.append(room(min(self._pool_rows, self.rows_per_epoch), self.width, self._dtype))
            else:
                rooms.reverse()
            rows = rooms[-1][:total]
            for index, part in zip(visit.shards, rows.split(counts), strict=True):
                if len(part):
                    shard, sequences = self.store.manifest.shards[index], self._take[index][0]
                    parts.append(threads.submit(self.store.fill, part, shard, self.hook, sequences))
        generator = generator_of(self.seed, "rows", visit.epoch, visit.number)
        return _Coming(visit, rows, threads.submit(torch.randperm, total, generator=generator), parts)

    def batches(self, rows: int, start: int = 0) -> Iterator[Float[Tensor, "row width"]]:
        """Batches of exactly `rows` rows (float32, CPU), for ever, from row `start` of the stream on.

        Threads read the next pool while the current one is used. A batch is the caller's: its memory is not used again.
        """
        visits, rooms, have = self._visits(start), [], 0
        batch = staged = torch.empty(0)
        coming: _Coming | None = None
        threads = ThreadPoolExecutor(self.store.readers, thread_name_prefix="store")
        try:
            coming = self._begin(threads, next(visits), coming, rooms)
            while True:
                for part in coming.parts:
                    part.result()
                pool, order, skip = coming.rows, coming.order.result(), coming.visit.skip
                if len(pool) == self.rows_per_epoch:
                    self._whole = pool
                coming = self._begin(threads, next(visits), coming, rooms)
                while skip < len(pool):
                    if have == 0:
                        batch = torch.empty(rows, self.width)
                    count = min(rows - have, len(pool) - skip)
                    numbers, target = order[skip : skip + count], batch[have : have + count]
                    if pool.dtype == batch.dtype:
                        torch.index_select(pool, 0, numbers, out=target)
                    else:
                        if len(staged) == 0:
                            staged = torch.empty(rows, self.width, dtype=pool.dtype)
                        target.copy_(torch.index_select(pool, 0, numbers, out=staged[:count]))
                    skip, have = skip + count, have + count
                    if have == rows:
                        yield batch
                        have = 0
        finally:
            # Not `cancel_futures`: it fails where the interpreter is shutting down.
            for part in coming.parts if coming else ():
                part.cancel()
            threads.shutdown()


def generator_of(seed: int, *place: int | str) -> torch.Generator:
    """The random numbers of one place in a shuffled order."""
    digest = hashlib.blake2b(repr((seed, *place)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
