"""Reading a store: in order for evidence, shuffled for training; bounded memory, deterministic, resumable."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hsae.errors import UserError
from hsae.files import named_folder, sha256
from hsae.store.direct import Doubt, read_rows
from hsae.store.manifest import NAME, HookRecord, Manifest, ShardRecord, keep_key
from hsae.store.rows import RowStream
from hsae.store.tokenizer import read_tokenizer


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
        return self.manifest.hook(self.name, name)

    @cached_property
    def tokenizer(self) -> Any:
        """See `read_tokenizer`."""
        return read_tokenizer(self.folder)

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
