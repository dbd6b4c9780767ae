"""Reading a store: in order for evidence, shuffled for training; bounded memory, deterministic, resumable."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hsae.errors import UserError, choices
from hsae.files import named_folder, sha256
from hsae.store.direct import Doubt, read_rows, room
from hsae.store.manifest import DTYPES, NAME, HookRecord, Manifest, ShardRecord, keep_key


@dataclass(frozen=True)
class Chunk:
    """Some whole sequences of a store, in order."""

    first: int
    tokens: Int[Tensor, "sequence position"]
    activations: Float[Tensor, "sequence position width"]
    keep: Bool[Tensor, "sequence position"]


class Store:
    """An activation store that is whole.

    Args:
        folder: its folder (see `Store.open` for names).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = Manifest.read(folder)
        self._verified: set[str] = set()

    @classmethod
    def open(cls, name: str | Path = "") -> Store:
        """Open a store by path, by name under the cache, or (nothing given) the newest."""
        return cls(named_folder(str(name), "activations", NAME))

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    def hook(self, name: str = "") -> tuple[str, HookRecord]:
        """A hook point of the store and its record; the only one when no name is given.

        Raises:
            UserError: it is not in the store, or there are several and none was named.
        """
        hooks = self.manifest.hooks
        if not name and len(hooks) == 1:
            name = next(iter(hooks))
        if name not in hooks:
            said = f"has no hook point {name!r}" if name else "has several hook points, so name one with --hook"
            raise UserError(f"store {self.name} {said}; {choices(name, hooks)}")
        return name, hooks[name]

    @cached_property
    def tokenizer(self) -> Any:
        """The tokeniser that made the tokens, from the store itself (`None` if the text came as bare token ids)."""
        path = self.folder / "tokenizer" / "tokenizer.json"
        if path.exists():
            from tokenizers import Tokenizer

            return Tokenizer.from_file(str(path))
        if (self.folder / "tokenizer").is_dir():
            from transformers import AutoTokenizer

            return AutoTokenizer.from_pretrained(self.folder / "tokenizer", local_files_only=True)
        return None

    def read(self, shard: ShardRecord, *keys: str) -> list[Tensor]:
        """Tensors of one shard. Its checksum is verified the first time this object reads it.

        Raises:
            UserError: the shard is missing or damaged; the line names the file.
        """
        path = self.folder / shard.file
        mend = "restore the file, or harvest the store again"
        try:
            if path.stat().st_size != shard.bytes:
                raise UserError(f"{path}: {path.stat().st_size} bytes, the manifest says {shard.bytes}; {mend}")
            if shard.file not in self._verified:
                if sha256(path) != shard.sha256:
                    raise UserError(f"{path}: damaged (its checksum is not the manifest's); {mend}")
                self._verified.add(shard.file)
            with safe_open(path, framework="pt") as file:
                return [file.get_tensor(key) for key in keys]
        except FileNotFoundError:
            raise UserError(f"{path}: missing; {mend}") from None
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: cannot be read ({error}); {mend}") from None

    def fill(self, rows: Float[Tensor, "row width"], shard: ShardRecord, hook: str, sequences: int) -> None:
        """Put the rows that count of a shard's first `sequences` into `rows`, which are contiguous and as many.

        Checks and errors are those of `read`.
        """
        path = self.folder / shard.file
        digest = None if shard.file in self._verified else hashlib.sha256()
        try:
            read_rows(path, shard.bytes, hook, sequences, rows, None if digest is None else digest.update)
        except (OSError, Doubt):
            pass
        else:
            if digest is None:
                return
            if digest.hexdigest() == shard.sha256:
                self._verified.add(shard.file)
                return
        # Whatever is wrong, the plain reading says it.
        values, keep = self.read(shard, hook, keep_key(hook))
        wrong = f"{path}: not the rows that the manifest says; harvest the store again"
        if values.shape[:2] != keep.shape:
            raise UserError(wrong)
        found = values[:sequences][keep[:sequences]]
        if found.shape != rows.shape:
            raise UserError(wrong)
        rows.copy_(found)

    def chunks(self, hook: str, sequences: int, first: int = 0, last: int | None = None) -> Iterator[Chunk]:
        """Sequences `[first, last)` in order, at most `sequences` at a time, activations in float32."""
        last = self.manifest.sequences if last is None else last
        start = 0
        for shard in self.manifest.shards:
            stop = start + shard.sequences
            if start < last and stop > first:
                tokens, values, keep = self.read(shard, "tokens", hook, keep_key(hook))
                for a in range(max(first - start, 0), min(last - start, shard.sequences), sequences):
                    b = min(a + sequences, last - start, shard.sequences)
                    yield Chunk(start + a, tokens[a:b], values[a:b].float(), keep[a:b])
            start = stop

    def rows(self, hook: str, seed: int, held_out: int = 0, pool_bytes: int = 256 << 20) -> RowStream:
        """The endless shuffled stream of training rows. `held_out` sequences at the store's end are never in it."""
        return RowStream(self, hook, seed, held_out, pool_bytes)


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

    def _generator(self, *place: int | str) -> torch.Generator:
        digest = hashlib.blake2b(repr((self.seed, *place)).encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)

    def _pools(self, epoch: int) -> list[tuple[int, ...]]:
        """The shards of each pool of an epoch."""
        order = torch.randperm(len(self._take), generator=self._generator("shards", epoch)).tolist()
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
        generator = self._generator("rows", visit.epoch, visit.number)
        return _Coming(visit, rows, threads.submit(torch.randperm, total, generator=generator), parts)

    def batches(self, rows: int, start: int = 0) -> Iterator[Float[Tensor, "row width"]]:
        """Batches of exactly `rows` rows (float32, CPU), for ever, from row `start` of the stream on.

        Threads read the next pool while the current one is used. A batch is the caller's: its memory is not used again.
        """
        visits, rooms, have = self._visits(start), [], 0
        batch = staged = torch.empty(0)
        coming: _Coming | None = None
        # Two readers: the first visit's checksums take a core longer than the disk takes.
        threads = ThreadPoolExecutor(2, thread_name_prefix="store")
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
