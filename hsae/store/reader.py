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
from hsae.store.manifest import NAME, HookRecord, Manifest, ShardRecord, keep_key


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


class RowStream:
    """Training rows of one hook point in a shuffled order that is a pure function of the seed.

    Each epoch visits the shards in a new order, a pool of a few at a time, and shuffles all rows of a pool. The order
    can be entered at any row, so a training run needs to remember only how many rows it has seen. Memory: two pools.
    """

    def __init__(self, store: Store, hook: str, seed: int, held_out: int, pool_bytes: int) -> None:
        self.store, self.hook, self.seed = store, hook, seed
        self.width = store.manifest.hooks[hook].width
        self._take = self._trainable(held_out)
        counts = [count for _, count in self._take]
        self.rows_per_epoch = sum(counts)
        if self.rows_per_epoch == 0:
            raise UserError(f"store {store.name}: no rows beside the {held_out} held-out sequences; harvest more")
        self._pool_rows = max(pool_bytes // (4 * self.width), max(counts))
        self._loaded: tuple[tuple[int, ...], Tensor] | None = None

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

    def _load(self, pool: tuple[int, ...]) -> Tensor:
        # A store that fits one pool is read once, not once an epoch.
        if self._loaded is not None and self._loaded[0] == pool:
            return self._loaded[1]
        rows = torch.empty(sum(self._take[i][1] for i in pool), self.width)
        start = 0
        for index in pool:
            sequences, count = self._take[index]
            if count:
                values, keep = self.store.read(self.store.manifest.shards[index], self.hook, keep_key(self.hook))
                rows[start : start + count] = values[:sequences][keep[:sequences]].float()
            start += count
        self._loaded = (pool, rows)
        return rows

    def _visits(self, row: int) -> Iterator[tuple[tuple[int, ...], int, int, int]]:
        """(shards, epoch, pool number, rows to skip) from the pool that holds the given row, for ever."""
        epoch, skip = divmod(row, self.rows_per_epoch)
        while True:
            for number, pool in enumerate(self._pools(epoch)):
                count = sum(self._take[i][1] for i in pool)
                if skip < count:
                    yield pool, epoch, number, skip
                skip = max(0, skip - count)
            epoch += 1

    def batches(self, rows: int, start: int = 0) -> Iterator[Float[Tensor, "row width"]]:
        """Batches of exactly `rows` rows (float32, CPU), for ever, from row `start` of the stream on.

        The next pool is read by a thread while the current one is used.
        """
        parts: list[Tensor] = []
        have = 0
        visits = self._visits(start)
        with ThreadPoolExecutor(1, thread_name_prefix="store") as thread:
            visit = next(visits)
            ready: Future[Tensor] = thread.submit(self._load, visit[0])
            while True:
                pool, (_, epoch, number, skip) = ready.result(), visit
                visit = next(visits)
                ready = thread.submit(self._load, visit[0])
                order = torch.randperm(len(pool), generator=self._generator("rows", epoch, number))
                while skip < len(pool):
                    part = pool[order[skip : skip + rows - have]]
                    skip, have = skip + len(part), have + len(part)
                    parts.append(part)
                    if have == rows:
                        yield parts[0] if len(parts) == 1 else torch.cat(parts)
                        parts, have = [], 0
