"""Reading a store: in order for evidence, shuffled for training; bounded memory, deterministic, resumable."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hsae.errors import UserError, one_line
from hsae.files import cache_root, named_folder, own
from hsae.header import BadHeader
from hsae.header import read as read_header
from hsae.store.direct import Doubt, check, read_rows
from hsae.store.manifest import NAME, HookRecord, Manifest, ShardRecord, keep_key
from hsae.store.remote import READERS, Shards, url_of
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
        url = url_of(folder)
        self._remote = Shards(folder, url) if url else None

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
        return read_tokenizer(self.folder, self.manifest)

    @property
    def _mend(self) -> str:
        return "harvest the store again" if self._remote else f"`hsae repair {self.folder}` mends it"

    @property
    def address(self) -> str:
        """The name under which `Store.open` finds it again: one under the cache, a URL, or the folder's path."""
        own_name = self.name if self.folder.parent == cache_root() / "activations" else str(self.folder)
        return self._remote.place.url if self._remote else own_name

    @property
    def readers(self) -> int:
        """How many shards are best read at once."""
        # Locally two: the first visit's checksums take a core longer than the disk takes.
        return READERS if self._remote else 2

    @contextmanager
    def _path(self, shard: ShardRecord) -> Iterator[Path]:
        """Where a shard lies on this machine; it stays there until the end."""
        if self._remote is None:
            yield self.folder / shard.file
            return
        with self._remote.held(shard) as path:
            self._verified.add(shard.file)
            yield path

    def ahead(self, shard: ShardRecord) -> None:
        """Say that a shard is read soon; one that lies elsewhere is fetched meanwhile."""
        if self._remote is not None:
            self._remote.ahead(shard)

    def read(self, shard: ShardRecord, *keys: str) -> list[Tensor]:
        """Tensors of one shard. Its checksum is verified the first time this object reads it.

        Raises:
            UserError: the shard is missing or damaged, or not what the manifest says; the line names the file.
        """
        with self._path(shard) as path:
            return self._read(path, shard, keys)

    def _read(self, path: Path, shard: ShardRecord, keys: tuple[str, ...]) -> list[Tensor]:
        if shard.file not in self._verified:
            shard.checksum.check(path, path.parent, "the manifest", self._mend)
        try:
            with open(path, "rb") as file:
                check(read_header(file), self.manifest.layout(shard))
            with safe_open(path, framework="pt") as file:
                found = {key: file.get_tensor(key) for key in keys}
            if "tokens" in found and int(found["tokens"].amin()) < 0:
                raise Doubt("it holds a token below 0")
            for hook, count in shard.kept.items():
                mask = found.get(keep_key(hook))
                if mask is not None and (mask.view(torch.uint8).amax() > 1 or int(mask.sum()) != count):
                    raise Doubt(f"other positions of {hook} count than the manifest says")
        except FileNotFoundError:
            raise UserError(f"{path}: missing; {self._mend}") from None
        except (OSError, SafetensorError, BadHeader, Doubt) as error:
            raise UserError(f"{path}: cannot be read ({one_line(error)}); {self._mend}") from None
        self._verified.add(shard.file)
        return list(found.values())

    def beside(self, name: str) -> Path | None:
        """A file beside the shards, such as the true directions of made data; None where the store has none.

        Raises:
            UserError: it is damaged, or not the store's.
        """
        path, checksum = self.folder / name, self.manifest.files.get(name)
        if checksum is not None:
            checksum.check(path, self.folder, "the manifest", self._mend)
        elif not path.exists():
            return None
        return own(path, self.folder)

    def fill(self, rows: Float[Tensor, "row width"], shard: ShardRecord, hook: str, sequences: int) -> None:
        """Put the rows that count of a shard's first `sequences` into `rows`, which are contiguous and as many.

        Checks and errors are those of `read`.
        """
        with self._path(shard) as path:
            self._fill(path, rows, shard, hook, sequences)

    def _fill(
        self, path: Path, rows: Float[Tensor, "row width"], shard: ShardRecord, hook: str, sequences: int
    ) -> None:
        layout = self.manifest.layout(shard)
        digest = None if shard.file in self._verified else hashlib.sha256()
        try:
            own(path, path.parent)
            read_rows(path, layout, hook, sequences, rows, None if digest is None else digest.update)
        except (OSError, BadHeader, Doubt, UserError):
            pass
        else:
            if digest is None:
                return
            if digest.hexdigest() == shard.sha256:
                self._verified.add(shard.file)
                return
        # Whatever is wrong, the plain reading says it.
        values, keep = self._read(path, shard, (hook, keep_key(hook)))
        found = values[:sequences][keep[:sequences]]
        if found.shape != rows.shape:
            raise UserError(f"{path}: changed while it was read; {self._mend}")
        rows.copy_(found)

    def chunks(self, hook: str, sequences: int, first: int = 0, last: int | None = None) -> Iterator[Chunk]:
        """Sequences `[first, last)` in order, at most `sequences` at a time, activations in float32."""
        last = self.manifest.sequences if last is None else last
        start = 0
        for shard, following in zip_longest(self.manifest.shards, self.manifest.shards[1:]):
            stop = start + shard.sequences
            if start < last and stop > first:
                if following is not None and stop < last:
                    self.ahead(following)
                tokens, values, keep = self.read(shard, "tokens", hook, keep_key(hook))
                for a in range(max(first - start, 0), min(last - start, shard.sequences), sequences):
                    b = min(a + sequences, last - start, shard.sequences)
                    yield Chunk(start + a, tokens[a:b], values[a:b].float(), keep[a:b])
            start = stop

    def rows(self, hook: str, seed: int, held_out: int = 0, pool_bytes: int = 256 << 20) -> RowStream:
        """The endless shuffled stream of training rows. `held_out` sequences at the store's end are never in it."""
        return RowStream(self, hook, seed, held_out, pool_bytes)
