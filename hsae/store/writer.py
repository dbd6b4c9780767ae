"""Writing a store, shard by shard, in any order, so that a kill at any instant costs at most one shard.

While a store is being made its folder holds `plan.json` (what is being made) and `journal/`, with one small file for
each whole shard: its moments, its checksum, and what the caller tells of it. `manifest.json` comes last, in one rename.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hsae.errors import UserError
from hsae.files import lasting_folder, replacing
from hsae.seal import read_json, write_json
from hsae.store.manifest import DTYPES, FORMAT, NAME, VERSION, HookRecord, Manifest, ShardRecord, keep_key
from hsae.store.save import moments, save

PLAN, JOURNAL, TOKENIZER = "plan.json", "journal", "tokenizer"
# No room: the disk's, the user's share of it, the process's limit.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# One shard as the journal tells it.
Record = dict[str, Any]


class NotFinite(UserError):
    """A value that a shard was to hold is not finite in the store's dtype."""


class StoreWriter:
    """Makes a store, or goes on with one that was cut off. What an interrupted writing left behind is cleared away.

    Every file of the store lies in `folder` when it is whole, and is then handed to `_put`: a store that is to lie
    elsewhere is made by a subclass with its own `_put`, `_there` and `_drop`.

    Args:
        folder: the store's folder; made if it is not there.
        plan: plain data that says what is being made; going on needs the same plan.
        dtype: "fp32", "bf16" or "fp16".

    Attributes:
        records: the journal's entries, by the shard's index; `told` in each is what `write` was told beside the data.

    Raises:
        UserError: the folder holds a store or a beginning with another plan.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any], dtype: str) -> None:
        self.folder, self.dtype = folder, getattr(torch, DTYPES[dtype])
        self._dtype_name = dtype
        with _room(folder):
            lasting_folder(folder / JOURNAL)
            self._begin(json.loads(json.dumps(dict(plan))))
        self.records = self.whole_shards()
        self._clear()

    def _begin(self, plan: dict[str, Any]) -> None:
        """Write the plan, or hold it against the one that is there."""
        mend = "give another --name, or delete the folder"
        if (self.folder / "journal.jsonl").exists():
            raise UserError(f"{self.folder}: holds an unfinished store of an older version of hsae; {mend}")
        try:
            there, _ = read_json(self.folder / PLAN, mend)
        except FileNotFoundError:
            if NAME in self._there():
                raise UserError(f"{self.folder}: already holds a store; give another --name") from None
            for name in self._there():
                if name.startswith(f"{JOURNAL}/"):  # of a plan that is gone
                    self._drop(name)
            write_json(self.folder / PLAN, plan)
            self._put(PLAN)
            return
        if there != plan:
            differ = ", ".join(_differences(there, plan))
            raise UserError(f"{self.folder}: holds an unfinished store made with other settings ({differ}); {mend}")

    def whole_shards(self) -> dict[int, Record]:
        """The shards that are whole, read from the journal anew."""
        there, records = self._there(), {}
        for name in sorted(there):
            if (found := re.fullmatch(rf"{JOURNAL}/(\d+)\.json", name)) is None:
                continue
            index = int(found[1])
            try:
                record, _ = read_json(self.folder / name, "")
                if record["file"] == shard_name(index) and there.get(record["file"]) == record["bytes"]:
                    records[index] = record
            except (FileNotFoundError, UserError, KeyError):
                pass  # damaged, so not there: the shard is made again
        return records

    def _clear(self) -> None:
        """Remove what a kill left: files that were not whole, shards without an entry, entries without a shard."""
        good = {shard_name(index) for index in self.records} | {_entry(index) for index in self.records}
        for part in [*self.folder.glob(".*.part"), *self.folder.glob("*/.*.part")]:
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
        for name in self._there():
            if re.fullmatch(rf"\d+\.safetensors|{JOURNAL}/\d+\.json", name) and name not in good:
                self._drop(name)

    # ---- where the files of the store are

    def _there(self) -> dict[str, int]:
        """The store's whole files with their sizes, by name relative to it."""
        files = [path for place in (self.folder, self.folder / JOURNAL) for path in place.glob("[!.]*")]
        return {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in files if path.is_file()}

    def _put(self, name: str) -> None:
        """A file is whole in the folder; put it where the store is. Called in order: a shard, then its entry."""

    def _drop(self, name: str) -> None:
        """Remove a file of the store, if it is there."""
        (self.folder / name).unlink(missing_ok=True)

    # ---- shards

    @property
    def sequences(self) -> int:
        """Sequences in the shards that are whole."""
        return sum(r["sequences"] for r in self.records.values())

    def write(
        self,
        index: int,
        tokens: Int[Tensor, "sequence position"],
        activations: Mapping[str, Float[Tensor, "sequence position width"]],
        keep: Mapping[str, Bool[Tensor, "sequence position"]],
        excluded: Mapping[str, Mapping[str, int]],
        **told: Any,
    ) -> None:
        """Write a shard and record it.

        Args:
            index: which shard it is, from 0.
            tokens: token ids.
            activations: for each hook point, what the model computed, in any float dtype; stored in the store's.
            keep: for each hook point, which positions count.
            excluded: for each hook point, how many positions do not count, by reason.
            told: plain data to record with it; `cursor`, where in the text the shard starts, goes into the manifest.

        Raises:
            NotFinite: a value is not finite, or does not fit the store's dtype. Nothing is written.
            UserError: the disk is full.
        """
        name = shard_name(index)
        tensors: dict[str, Tensor] = {"tokens": tokens.to(torch.int32).contiguous()}
        sums: dict[str, dict[str, Any]] = {}
        for hook, values in activations.items():
            stored, mask = values.to("cpu", self.dtype).contiguous(), keep[hook].to("cpu").contiguous()
            found = moments(stored.flatten(0, 1), mask.flatten())
            if found is None:
                raise NotFinite(self._not_finite(hook, values, index))
            tensors[hook], tensors[keep_key(hook)], sums[hook] = stored, mask, found
        with _room(self.folder):
            with replacing(self.folder / name) as aside:
                checksum = save(aside, tensors)
                size = aside.stat().st_size
            self._put(name)
            record: Record = {
                "file": name,
                "sequences": tokens.shape[0],
                "bytes": size,
                "sha256": checksum,
                "moments": sums,
                "excluded": {hook: dict(reasons) for hook, reasons in excluded.items()},
                "told": told,
            }
            write_json(self.folder / _entry(index), record)
            self._put(_entry(index))
        self.records[index] = record

    def _not_finite(self, hook: str, values: Tensor, shard: int) -> str:
        bad = (~torch.isfinite(values.to(self.dtype))).nonzero()[0].tolist()
        value = values[tuple(bad)].item()
        place = f"{hook}, shard {shard}, sequence {bad[0]} in it, position {bad[1]}"
        if torch.isfinite(torch.tensor(value)):
            return f"{place}: {value:.6g} does not fit {self._dtype_name}; use --dtype bf16 or fp32"
        return f"{place}: the model gave {value}; check the model, or its dtype"

    def add(self, name: str, path: Path) -> None:
        """Move a file into the store: `name` is its place there, `path` where it was made, on the same disk.

        Raises:
            UserError: the disk is full.
        """
        with _room(self.folder):
            lasting_folder((self.folder / name).parent)
            with replacing(self.folder / name) as aside:
                os.replace(path, aside)
            self._put(name)

    def finish(self, *, shard_sequences: int, context: int, **tables: Any) -> Manifest:
        """Sum up, write the manifest, and drop the plan and the journal: the folder is now a store.

        Args:
            shard_sequences: sequences in every shard but the last.
            context: positions in a sequence.
            tables: `model`, `tokenizer`, `text`, `harvest` and maybe `made` of the manifest.

        Raises:
            UserError: no position counts at a hook point, or the disk is full.
        """
        # In order of the shards, so that sums come out the same whoever wrote them, and when.
        records = [self.records[index] for index in range(len(self.records))]
        manifest = Manifest(
            format=FORMAT,
            version=VERSION,
            context=context,
            dtype=self._dtype_name,
            sequences=self.sequences,
            shard_sequences=shard_sequences,
            hooks={hook: _total(hook, records) for hook in records[0]["moments"]},
            shards=tuple(_shard_record(record) for record in records),
            **tables,
        )
        with _room(self.folder):
            manifest.write(self.folder)
            self._put(NAME)
        self.clear_up()
        return manifest

    def clear_up(self) -> None:
        """Drop the plan and the journal of a store that is whole."""
        for name in sorted(self._there()):
            if name == PLAN or name.startswith(f"{JOURNAL}/"):
                self._drop(name)
        clear_up(self.folder)


def clear_up(folder: Path) -> None:
    """Remove the plan and the journal beside a manifest; a kill after it was written leaves them there."""
    for entry in [*(folder / JOURNAL).glob("*"), folder / PLAN]:
        entry.unlink(missing_ok=True)
    if (folder / JOURNAL).exists():
        (folder / JOURNAL).rmdir()


def shard_name(index: int) -> str:
    """A shard's file."""
    return f"{index:05d}.safetensors"


def _entry(index: int) -> str:
    return f"{JOURNAL}/{index:05d}.json"


def _shard_record(record: Record) -> ShardRecord:
    kept = {hook: moments["count"] for hook, moments in record["moments"].items()}
    cursor = record["told"].get("cursor")
    return ShardRecord(record["file"], record["sequences"], record["bytes"], record["sha256"], kept, cursor)


def _differences(there: Mapping[str, Any], plan: Mapping[str, Any]) -> Iterator[str]:
    """Names of what differs between two tables of tables."""
    for name in sorted(there.keys() | plan.keys()):
        old, new = there.get(name), plan.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from (f"{name}.{key}" for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key))
        elif old != new:
            yield name


@contextmanager
def _room(folder: Path) -> Iterator[None]:
    """A full disk is a user's matter."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UserError(f"{folder}: the disk is full; free some of it, and the same command goes on") from None


def _total(hook: str, records: Sequence[Record]) -> HookRecord:
    count = sum(r["moments"][hook]["count"] for r in records)
    if count == 0:
        raise UserError(f"{hook}: no position counts; loosen --exclude-special, --exclude-first or --exclude-norm")

    def mean(key: str) -> tuple[float, ...]:
        rows = torch.tensor([r["moments"][hook][key] for r in records], dtype=torch.float64)
        return tuple((rows.sum(0) / count).tolist())

    excluded: dict[str, int] = {}
    for record in records:
        for reason, number in record["excluded"][hook].items():
            excluded[reason] = excluded.get(reason, 0) + number
    mean_x, mean_square = mean("sum"), mean("square")
    return HookRecord(len(mean_x), count, excluded, mean_x, mean_square)
