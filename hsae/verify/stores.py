"""Everything of a store: the manifest, every byte of every shard, what lies beside them; and moments computed anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hsae.errors import UserError
from hsae.seal import Checksum, read_json
from hsae.store import HookRecord, Manifest, ShardRecord, Store
from hsae.store.manifest import BESIDE, NAME, keep_key
from hsae.store.tokenizer import FOLDER
from hsae.truth import Truth
from hsae.verify.finding import UNSEALED, Advance, Finding, bytes_in
from hsae.verify.places import JOURNAL, PLAN, Place

# Sums of float64 in another order.
TOLERANCE = 1e-9
# Numbers that are taken to float64 at a time.
BLOCK = 1 << 18


def check_store(place: Place, deep: bool, advance: Advance) -> Finding:
    """Everything of a store, or of the beginning of one."""
    found = Finding(place)
    if isinstance(place.folder, Path) and not (place.folder / NAME).exists():
        _check_beginning(place.folder, found, advance)
        return found
    try:
        store = Store.open(place.folder)
    except UserError as error:
        found.damages[str(error)] = None
        return found
    manifest = store.manifest
    shards = len(manifest.shards)
    found.size = sum(shard.bytes for shard in manifest.shards)
    found.note = f"{shards} shard{'' if shards == 1 else 's'}, {manifest.tokens:,} tokens"
    if not manifest.sealed:
        found.note += f", {UNSEALED}"
    sums = {hook: Sums(record.width) for hook, record in manifest.hooks.items()}
    for index, shard in enumerate(manifest.shards):
        if not found.holds(lambda shard=shard: _check_shard(store, shard, sums if deep else {})):
            found.shards.append(index)
        advance(shard.bytes)
    for name in manifest.files:
        found.holds(lambda name=name: store.beside(name), store.folder / name)
    if not found.files:
        # Together they make sense, too.
        found.holds(lambda: store.tokenizer, store.folder / FOLDER)
        found.holds(lambda: Truth.of(store), store.folder / BESIDE[1])
    if deep and not found.shards:
        for hook, record in manifest.hooks.items():
            if wrong := sums[hook].differ(record):
                found.damages[f"{store.folder / NAME}: {hook}: {wrong}; harvest the store again"] = None
    return found


def _check_shard(store: Store, shard: ShardRecord, sums: dict[str, Sums]) -> None:
    """All tensors of a shard.

    Raises:
        UserError: it is damaged.
    """
    keys = ["tokens", *(key for hook in store.manifest.hooks for key in (hook, keep_key(hook)))]
    tensors = dict(zip(keys, store.read(shard, *keys), strict=True))
    for hook, sum in sums.items():
        sum.add(tensors[hook].flatten(0, 1), tensors[keep_key(hook)].flatten())


def _check_beginning(folder: Path, found: Finding, advance: Advance) -> None:
    """A store that is being made: its plan, and the shards that its journal says are whole."""
    size = bytes_in(folder)
    if not (folder / PLAN).exists():
        found.damages[f"{folder / NAME}: missing; restore the file, or harvest the store again"] = None
        advance(size)
        return
    mend = f"delete {folder} and harvest anew"
    again = "the harvest's command makes that shard again"
    found.unfinished, found.size, whole = True, size, 0
    found.holds(lambda: read_json(folder / PLAN, mend))
    for path in sorted((folder / JOURNAL).glob("[!.]*.json")):
        entry: list[dict[str, Any]] = []
        if found.holds(lambda path=path, entry=entry: entry.append(read_json(path, again)[0])):
            file, checksum = (
                folder / str(entry[0].get("file")),
                Checksum(entry[0].get("bytes", 0), entry[0].get("sha256", "")),
            )
            mend = f"delete {path}, and {again}"
            whole += found.holds(
                lambda file=file, checksum=checksum, mend=mend: checksum.check(file, folder, "the journal", mend)
            )
    advance(size)
    found.note = f"{whole} shard{'' if whole == 1 else 's'}; give its `hsae harvest` command again"


class Sums:
    """Σx and Σx² over the positions that count, in float64, and how many they are."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.total, self.square = (torch.zeros(width, dtype=torch.float64) for _ in range(2))

    def add(self, values: Float[Tensor, "row width"], keep: Bool[Tensor, " row"]) -> None:
        """Some more rows."""
        rows = max(1, BLOCK // values.shape[1])
        for block, mask in zip(values.split(rows), keep.split(rows), strict=True):
            exact = block[mask].double()
            self.total += exact.sum(0)
            self.square += exact.square().sum(0)
        self.count += int(keep.sum())

    def differ(self, record: HookRecord) -> str:
        """How they differ from what the manifest says; empty: they do not."""
        if self.count != record.kept:
            return f"{self.count:,} positions count, the manifest says {record.kept:,}"
        told = torch.tensor([record.mean, record.second_moment], dtype=torch.float64)
        mean, square = self.total / self.count, self.square / self.count
        if not (mean.isfinite() & square.isfinite()).all():
            return "values that count are not finite"
        off = (mean - told[0]).abs() > TOLERANCE * (square.sqrt() + told[1].sqrt())
        if (off | ((square - told[1]).abs() > TOLERANCE * (square + told[1]))).any():
            return "its moments are not those of the activations"
        return ""


def size_of(place: Place) -> int:
    """Bytes that checking a store will read."""
    try:
        return sum(shard.bytes for shard in Manifest.read(Path(place.folder)).shards)
    except UserError:
        return bytes_in(Path(place.folder))
