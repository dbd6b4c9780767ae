"""Stores of planted documents, and how well the order in which rows come out of them is mixed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from hsae.store import Store, StoreWriter

HOOK, WIDTH, CONTEXT = "hook", 64, 512
BATCH = 16_384
# Shares of a row's variance that its document and its sequence settle; the rest is the token's own.
DOCUMENT, SEQUENCE = 0.25, 0.25


@dataclass(frozen=True)
class Planted:
    """What a store is made of: `document` sequences follow each other in one document."""

    shards: int
    per_shard: int
    document: int

    @property
    def rows(self) -> int:
        return self.shards * self.per_shard * CONTEXT


def shard_rows(made: Planted, shard: int) -> Tensor:
    """A shard's rows, [sequence, position, width]. Column 0 is not data but the sequence's number."""
    number = torch.arange(made.per_shard) + shard * made.per_shard
    draws = torch.Generator()
    rows = torch.randn(made.per_shard, CONTEXT, WIDTH, generator=draws.manual_seed(2 * shard))
    rows *= (1 - DOCUMENT - SEQUENCE) ** 0.5
    rows += SEQUENCE**0.5 * torch.randn(made.per_shard, 1, WIDTH, generator=draws)
    for document in (number // made.document).unique().tolist():
        theme = torch.randn(WIDTH, generator=draws.manual_seed(2 * document + 1))
        rows[number // made.document == document] += DOCUMENT**0.5 * theme
    rows[..., 0] = number[:, None].float()
    return rows


def make_store(folder: Path, made: Planted, dtype: str = "fp32") -> Store:
    """The store in a folder, made if it is not there."""
    if not (folder / "manifest.json").exists():
        writer = StoreWriter(folder, {"planted": repr(made), "dtype": dtype}, dtype)
        keep = {HOOK: torch.ones(made.per_shard, CONTEXT, dtype=torch.bool)}
        tokens = torch.zeros(made.per_shard, CONTEXT, dtype=torch.int32)
        for shard in range(len(writer.records), made.shards):
            writer.write(shard, tokens, {HOOK: shard_rows(made, shard)}, keep, {HOOK: {}})
        tables = {name: {} for name in ("model", "tokenizer", "text", "harvest")}
        writer.finish(shard_sequences=made.per_shard, context=CONTEXT, **tables)
    return Store(folder)


# ---- orders


def in_order(store: Store, rows: int = BATCH) -> Iterator[Tensor]:
    """Batches as the rows lie in the store."""
    left = torch.empty(0, WIDTH)
    for chunk in store.chunks(HOOK, 64):
        left = torch.cat([left, chunk.activations[chunk.keep]])
        while len(left) >= rows:
            yield left[:rows]
            left = left[rows:]


def perfect(store: Store, rows: int = BATCH) -> Iterator[Tensor]:
    """Batches of a permutation of the whole store, which has to fit the memory."""
    whole = torch.cat([chunk.activations[chunk.keep] for chunk in store.chunks(HOOK, 256)])
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
    for numbers in order.split(rows):
        if len(numbers) == rows:
            yield whole[numbers]


def mixing_buffer(source: Iterator[Tensor], size: int, rows: int, kept: float = 0.5) -> Iterator[Tensor]:
    """sae-lens' published scheme: append what comes to a buffer; once it is full, shuffle it all, keep a share of its
    size back, and give out the rest."""
    buffer = torch.empty(0, WIDTH)
    for new in source:
        buffer = torch.cat([buffer, new])
        if len(buffer) < size:
            continue
        buffer = buffer[torch.randperm(len(buffer))]
        count = max(1, (len(buffer) - int(size * kept)) // rows)
        yield from buffer[: count * rows].split(rows)
        buffer = buffer[count * rows :]


# ---- how well they mix


@dataclass(frozen=True)
class Mixing:
    """Means over batches.

    Attributes:
        neighbours: correlation of a row with the next one of its batch, over centred rows.
        sequence, shard: the largest share of a batch that comes from one.
        spread: the variance of a batch's mean, over what it is when rows are drawn independently. Grows with the batch.
    """

    neighbours: float
    sequence: float
    shard: float
    spread: float


def mixing(batches: Iterator[Tensor], made: Planted, mean: Tensor) -> Mixing:
    """How well the batches of planted rows are mixed; `mean` is the store's, [width]."""
    products, squares, spread = [], [], []
    shares: dict[int, list[float]] = {1: [], made.per_shard: []}
    for batch in batches:
        number, x = batch[:, 0].long(), (batch - mean)[:, 1:].double()
        products.append((x[:-1] * x[1:]).sum().item() / (len(x) - 1))
        squares.append(x.square().sum().item() / len(x))
        spread.append(len(x) * x.mean(0).square().sum().item())
        for per, found in shares.items():
            found.append(torch.bincount(number // per).max().item() / len(x))
    size = sum(squares) / len(squares)
    sequence, shard = (sum(found) / len(found) for found in shares.values())
    return Mixing(sum(products) / len(products) / size, sequence, shard, sum(spread) / len(spread) / size)


def compare(store: Store, made: Planted, pool_bytes: int) -> dict[str, Mixing]:
    """All orders on one store, each over one epoch."""
    mean = torch.tensor(store.manifest.hooks[HOOK].mean, dtype=torch.float32)
    stream = store.rows(HOOK, 0, pool_bytes=pool_bytes)
    pool = min(pool_bytes // (4 * WIDTH), made.rows // 2)
    # What a run of sae-lens' tutorial holds: 64 contexts, filled 16 at a time, in batches of 4,096.
    fed = in_order(store, 16 * CONTEXT)
    orders = {
        "a permutation of the whole store": perfect(store),
        "hsae": islice(stream.batches(BATCH), made.rows // BATCH),
        "mixing buffer as large as hsae's pool": mixing_buffer(in_order(store), pool, BATCH),
        "mixing buffer of 64 contexts, batches of 4,096": mixing_buffer(fed, 64 * CONTEXT, 4096),
        "the store's own order": in_order(store),
    }
    torch.manual_seed(0)
    return {name: mixing(batches, made, mean) for name, batches in orders.items()}
