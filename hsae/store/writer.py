"""Writing a store, shard by shard, so that a kill at any instant costs at most one shard.

While a store is being made its folder holds `plan.json` (what is being made) and `journal.jsonl` (one line for each
whole shard, with its moments and the place in the text where the next one starts). `manifest.json` comes last, in one
rename.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hsae.errors import UserError
from hsae.files import replacing
from hsae.store.manifest import DTYPES, FORMAT, VERSION, HookRecord, Manifest, ShardRecord, keep_key

PLAN, JOURNAL = "plan.json", "journal.jsonl"
# What safetensors calls the types that shards hold.
SAFETENSORS = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int32: "I32",
    torch.bool: "BOOL",
}
# Bytes that are written and summed at a time; numbers whose moments are taken at a time.
PIECE, BLOCK = 1 << 20, 1 << 14


class StoreWriter:
    """Makes a store, or goes on with one that was cut off.

    Args:
        folder: the store's folder; made if it is not there.
        plan: plain data that says what is being made; going on needs the same plan.
        dtype: "fp32", "bf16" or "fp16".

    Attributes:
        records: one journal entry for each whole shard, in order.

    Raises:
        UserError: the folder holds a store or a beginning with another plan.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any], dtype: str) -> None:
        self.folder, self.dtype = folder, getattr(torch, DTYPES[dtype])
        self._dtype_name = dtype
        folder.mkdir(parents=True, exist_ok=True)
        plan_path = folder / PLAN
        text = json.dumps(dict(plan), indent=1, sort_keys=True) + "\n"
        if plan_path.exists():
            if plan_path.read_text(encoding="utf-8") != text:
                raise UserError(
                    f"{folder}: holds an unfinished store made with other settings; give another --name, or delete it"
                )
        else:
            if (folder / "manifest.json").exists():
                raise UserError(f"{folder}: already holds a store; give another --name")
            with replacing(plan_path) as aside:
                aside.write_text(text, encoding="utf-8")
        self.records = self._whole_shards()
        # Rewritten without a torn last line, so that appending to it is safe.
        with replacing(folder / JOURNAL) as aside:
            aside.write_text("".join(json.dumps(r) + "\n" for r in self.records), encoding="utf-8")

    def _whole_shards(self) -> list[dict[str, Any]]:
        path, records = self.folder / JOURNAL, []
        if path.exists():
            for line in path.read_bytes().split(b"\n"):
                try:
                    record = json.loads(line)
                    shard = self.folder / str(record["file"])
                    if record["file"] != self._name(len(records)) or shard.stat().st_size != record["bytes"]:
                        break
                except (ValueError, KeyError, TypeError, OSError):
                    break
                records.append(record)
        return records

    @staticmethod
    def _name(index: int) -> str:
        return f"{index:05d}.safetensors"

    @property
    def sequences(self) -> int:
        """Sequences in the shards that are whole."""
        return sum(r["sequences"] for r in self.records)

    @property
    def resume(self) -> Any:
        """What `write` was given as `resume` with the last whole shard; None before the first."""
        return self.records[-1]["resume"] if self.records else None

    def write(
        self,
        tokens: Int[Tensor, "sequence position"],
        activations: Mapping[str, Float[Tensor, "sequence position width"]],
        keep: Mapping[str, Bool[Tensor, "sequence position"]],
        excluded: Mapping[str, Mapping[str, int]],
        resume: Any,
    ) -> None:
        """Write the next shard and record it.

        Args:
            tokens: token ids.
            activations: for each hook point, what the model computed, in any float dtype; stored in the store's.
            keep: for each hook point, which positions count.
            excluded: for each hook point, how many positions do not count, by reason.
            resume: plain data that tells the caller where the next shard starts.

        Raises:
            UserError: a value is not finite, or does not fit the store's dtype.
        """
        name = self._name(len(self.records))
        tensors: dict[str, Tensor] = {"tokens": tokens.to(torch.int32).contiguous()}
        moments: dict[str, dict[str, Any]] = {}
        for hook, values in activations.items():
            stored, mask = values.to("cpu", self.dtype).contiguous(), keep[hook].to("cpu").contiguous()
            found = _moments(stored.flatten(0, 1), mask.flatten())
            if found is None:
                raise UserError(self._not_finite(hook, values, len(self.records)))
            tensors[hook], tensors[keep_key(hook)], moments[hook] = stored, mask, found
        with replacing(self.folder / name) as aside:
            checksum = _save(aside, tensors)
            record = {
                "file": name,
                "sequences": tokens.shape[0],
                "bytes": aside.stat().st_size,
                "sha256": checksum,
                "moments": moments,
                "excluded": {hook: dict(reasons) for hook, reasons in excluded.items()},
                "resume": resume,
            }
        with open(self.folder / JOURNAL, "a", encoding="utf-8") as journal:
            journal.write(json.dumps(record) + "\n")
            journal.flush()
            os.fsync(journal.fileno())
        self.records.append(record)

    def _not_finite(self, hook: str, values: Tensor, shard: int) -> str:
        bad = (~torch.isfinite(values.to(self.dtype))).nonzero()[0].tolist()
        value = values[tuple(bad)].item()
        place = f"{hook}, shard {shard}, sequence {bad[0]} in it, position {bad[1]}"
        if torch.isfinite(torch.tensor(value)):
            return f"{place}: {value:.6g} does not fit {self._dtype_name}; use --dtype bf16 or fp32"
        return f"{place}: the model gave {value}; check the model, or its dtype"

    def finish(self, *, shard_sequences: int, context: int, **tables: dict[str, Any]) -> Manifest:
        """Sum up, write the manifest, and drop the plan and the journal: the folder is now a store.

        Args:
            shard_sequences: sequences in every shard but the last.
            context: positions in a sequence.
            tables: `model`, `tokenizer`, `text` and `harvest` of the manifest.
        """
        hooks = {hook: _total(hook, self.records) for hook in self.records[0]["moments"]}
        shards = tuple(
            ShardRecord(
                r["file"], r["sequences"], r["bytes"], r["sha256"], {h: m["count"] for h, m in r["moments"].items()}
            )
            for r in self.records
        )
        manifest = Manifest(
            format=FORMAT,
            version=VERSION,
            context=context,
            dtype=self._dtype_name,
            sequences=self.sequences,
            shard_sequences=shard_sequences,
            hooks=hooks,
            shards=shards,
            **tables,
        )
        manifest.write(self.folder)
        (self.folder / JOURNAL).unlink()
        (self.folder / PLAN).unlink()
        return manifest


def _save(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a safetensors file and give its sha256. Unlike the library's, it copies nothing and reads nothing again.

    (The library's save_file also writes through a temporary file of its own, which a kill leaves behind.)
    """
    # As the library orders them, so that every tensor starts at a multiple of its numbers' size.
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, not tensors[name].is_floating_point(), name))
    header, end = {}, 0
    for name in names:
        start, end = end, end + tensors[name].nbytes
        shape, kind = list(tensors[name].shape), SAFETENSORS[tensors[name].dtype]
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with open(path, "wb", buffering=0) as file:
        for part in (len(text).to_bytes(8, "little") + text, *(_bytes(tensors[name]) for name in names)):
            # In pieces that are still in the cache when they are written.
            for start in range(0, len(part), PIECE):
                piece = memoryview(part)[start : start + PIECE]
                digest.update(piece)
                while piece:
                    piece = piece[file.write(piece) :]
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _moments(values: Float[Tensor, "row width"], keep: Bool[Tensor, " row"]) -> dict[str, Any] | None:
    """Count, Σx and Σx² over the rows that count, in float64; None if any row, counting or not, is not finite."""
    total = torch.zeros(values.shape[1], dtype=torch.float64)
    square, everything = torch.zeros_like(total), torch.zeros_like(total)
    # Blocks of a few thousand numbers stay in the cache, and PyTorch leaves them to this thread alone.
    rows = max(1, BLOCK // values.shape[1])
    for block, mask in zip(values.split(rows), keep.split(rows), strict=True):
        exact = block.double()
        sums = exact.sum(0)
        everything += sums
        if not mask.all():
            exact = exact[mask]
            sums = exact.sum(0)
        total += sums
        square += exact.square_().sum(0)
    if not everything.isfinite().all():
        return None
    return {"count": int(keep.sum()), "sum": total.tolist(), "square": square.tolist()}


def _total(hook: str, records: Iterable[dict[str, Any]]) -> HookRecord:
    records = list(records)
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
