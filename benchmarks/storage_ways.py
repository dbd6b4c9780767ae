"""Ways of reading the rows of a store in shuffled order, and what the page cache holds of its files."""

from __future__ import annotations

import ctypes
import hashlib
import json
import mmap
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from storage_mixing import BATCH, CONTEXT, HOOK, WIDTH, mixing_buffer
from torch import Tensor

from hsae.store import Store

ROW = 4 * WIDTH
FLOOR = "in order, one thread: the floor"


@dataclass(frozen=True)
class Way:
    """A way of reading: its name, the files, and what makes its batches."""

    name: str
    files: list[Path]
    batches: Callable[[], Iterator[Tensor]]
    limited: bool = False
    caches: tuple[str, ...] = ("cold", "warm")


# ---- the page cache


def resident(paths: list[Path]) -> float:
    """The share of the files' pages that are in the page cache."""
    libc, pages, there = ctypes.CDLL(None, use_errno=True), 0, 0
    for path in paths:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE) as mapped:
            count = -(-len(mapped) // mmap.PAGESIZE)
            found = (ctypes.c_ubyte * count)()
            view = (ctypes.c_char * len(mapped)).from_buffer(mapped)
            if libc.mincore(ctypes.c_void_p(ctypes.addressof(view)), ctypes.c_size_t(len(mapped)), found):
                raise OSError(ctypes.get_errno(), "mincore")
            del view
            pages, there = pages + count, there + sum(page & 1 for page in bytes(found))
    return there / pages


def evict(paths: list[Path]) -> float:
    """Drop the files from the page cache; what share stayed."""
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return resident(paths)


# ---- the ways


def in_order(files: list[Path], digest: Any = None) -> Iterator[Tensor]:
    """All bytes, one thread, into memory that is there: what the disk gives, or the page cache."""
    buffer = torch.empty(8 << 20, dtype=torch.uint8)
    for path in files:
        with open(path, "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            while got := file.readinto(buffer.numpy().data):
                if digest is not None:
                    digest.update(buffer.numpy().data[:got])
                yield buffer[: got // ROW * ROW].view(torch.float32).view(-1, WIDTH)


def shards(files: list[Path]) -> Iterator[Tensor]:
    """Whole shards as rows, in a random order."""
    for path in random.sample(files, len(files)):
        yield load_file(path)[HOOK].view(-1, WIDTH)


def shard_by_shard(files: list[Path]) -> Iterator[Tensor]:
    """One shard at a time, its rows permuted."""
    for rows in shards(files):
        for numbers in torch.randperm(len(rows)).split(BATCH):
            yield rows[numbers]


def random_rows(files: list[Path], batch: int) -> Iterator[Tensor]:
    """Rows from anywhere in the mapped files: a perfect shuffle."""
    mapped = [load_mapped(path) for path in files]
    per = len(mapped[0])
    while True:
        shard, row = divmod(np.random.randint(0, per * len(files), batch), per)
        found = np.empty((batch, WIDTH), np.float32)
        for i in np.unique(shard):
            found[shard == i] = mapped[i][row[shard == i]]
        yield torch.from_numpy(found)


def load_mapped(path: Path) -> np.ndarray:
    """A shard's rows, mapped."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        begin, end = json.loads(file.read(length))[HOOK]["data_offsets"]
    return np.memmap(path, np.float32, "r", 8 + length + begin, ((end - begin) // ROW, WIDTH))


def arrow(folder: Path, shuffled: Callable[[Any], Any]) -> Iterator[Tensor]:
    """Rows of a Hugging Face dataset in its own shuffled order."""
    import datasets

    ready = shuffled(datasets.load_from_disk(str(folder))).with_format("torch")
    for batch in ready.iter(batch_size=BATCH):
        yield torch.as_tensor(batch["row"])


def make_arrow(folder: Path, store: Store, most: int) -> tuple[Path, Path]:
    """Some of the store as Hugging Face datasets: of rows, and of whole contexts as sae-lens writes them."""
    import datasets
    import pyarrow as pa

    rows, contexts = folder / "rows", folder / "contexts"
    datasets.disable_progress_bars()
    if not contexts.exists():
        records = store.manifest.shards[:most]
        whole = torch.cat([store.read(record, HOOK)[0] for record in records]).numpy()
        flat = pa.FixedSizeListArray.from_arrays(pa.array(whole.reshape(-1)), WIDTH)
        datasets.Dataset(pa.table({"row": flat})).save_to_disk(str(rows))
        features: dict[str, Any] = {HOOK: datasets.Array2D((CONTEXT, WIDTH), "float32")}
        features["token_ids"] = datasets.Sequence(datasets.Value("int32"), length=CONTEXT)
        table = {HOOK: whole, "token_ids": np.zeros(whole.shape[:2], np.int32)}
        datasets.Dataset.from_dict(table, features=datasets.Features(features)).save_to_disk(str(contexts))
    return rows, contexts


def ways(store: Store, half: Store, pool: int, rows: Path) -> list[Way]:
    """Everything that is timed but sae-lens itself."""

    def epoch(store: Store, again: bool) -> Iterator[Tensor]:
        # The bf16 store is a quarter of the other: as many pools.
        size = pool // 4 if store is half else pool
        stream = (store if again else Store(store.folder)).rows(HOOK, 0, pool_bytes=size)
        return islice(stream.batches(BATCH), stream.rows_per_epoch // BATCH)

    def buffered(size: int, batch: int) -> Iterator[Tensor]:
        pieces = (piece for rows in shards(files) for piece in rows.split(16 * CONTEXT))
        return mixing_buffer(pieces, size, batch)

    files = [store.folder / record.file for record in store.manifest.shards]
    half_files = [half.folder / record.file for record in half.manifest.shards]
    table = sorted(rows.glob("*.arrow"))
    for checked in (store, half):
        for _ in epoch(checked, True):
            pass
    buffer = pool // ROW // 4
    return [
        Way(FLOOR, files, lambda: in_order(files)),
        Way("in order, one thread, with sha256", files, lambda: in_order(files, hashlib.sha256())),
        Way("hsae, first epoch: with checksums", files, lambda: epoch(store, False)),
        Way("hsae, later epochs", files, lambda: epoch(store, True)),
        Way("hsae, later epochs, a bf16 store", half_files, lambda: epoch(half, True)),
        Way("load_file + randperm, one shard at a time", files, lambda: shard_by_shard(files), True),
        Way("memmap, random rows", files, lambda: random_rows(files, 2048), True),
        Way("Arrow (datasets), shuffle", table, lambda: arrow(rows, lambda d: d.shuffle(seed=0)), True, ("warm",)),
        Way(
            f"Arrow (datasets), iterable, shuffle buffer {BATCH:,}",
            table,
            lambda: arrow(rows, lambda d: d.to_iterable_dataset(8).shuffle(seed=0, buffer_size=BATCH)),
            True,
            ("warm",),
        ),
        Way(f"mixing buffer of {buffer:,} rows", files, lambda: buffered(buffer, BATCH), True, ("warm",)),
        Way("mixing buffer of 64 contexts", files, lambda: buffered(64 * CONTEXT, 4096), True, ("warm",)),
    ]
