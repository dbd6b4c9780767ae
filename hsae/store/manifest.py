"""What a store says of itself: `manifest.json`, present only once the store is whole."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from hsae import config
from hsae.errors import UserError, choices
from hsae.header import LONGEST
from hsae.seal import Checksum, read_json, write_json

FORMAT = "hsae-activations"
VERSION = 1
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
# What safetensors calls them.
KINDS = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}
NAME = "manifest.json"
BESIDE = ("tokenizer", "truth.safetensors")
"""what may lie beside the shards: the tokeniser's folder, and the true directions of data that was made"""
FREE = ("model", "tokenizer", "text", "harvest")
MEND = "harvest the store again"


def keep_key(hook: str) -> str:
    """The shard's key of the mask of positions that count for training, moments, metrics and evidence."""
    return f"{hook}#keep"


@dataclass(frozen=True)
class ShardRecord:
    """One shard: sequences `[index * shard_sequences, …)`, and how many of its positions count, for each hook point."""

    file: str
    sequences: int
    bytes: int
    sha256: str
    kept: dict[str, int]
    cursor: dict[str, int] | None = None
    """where in the text it starts; None where that was not written down"""

    @property
    def checksum(self) -> Checksum:
        """What its file must have."""
        return Checksum(self.bytes, self.sha256)


@dataclass(frozen=True)
class HookRecord:
    """One hook point: width, how many positions count and why others do not, and the moments over those that count.

    `mean` and `second_moment` are float64, per dimension, over the values as stored: E[x_i] and E[x_i^2].
    """

    width: int
    kept: int
    excluded: dict[str, int]
    mean: tuple[float, ...]
    second_moment: tuple[float, ...]

    @property
    def variance(self) -> float:
        """Variance per dimension: the mean over dimensions of E[x_i^2] - E[x_i]^2."""
        pairs = zip(self.second_moment, self.mean, strict=True)
        return sum(square - mean * mean for square, mean in pairs) / self.width


@dataclass(frozen=True)
class Manifest:
    """The whole record of a store. Of its tables `hooks` alone has a fixed form; the others are for the reader's eye.

    Attributes:
        made: how the activations were computed: library, kernels, threads. Empty in older stores.
        files: the other files of the store, by their path in its folder. Empty in older stores.
        sealed: it was read from a file with a seal (see `hsae.seal`).
    """

    format: str
    version: int
    model: dict[str, Any]
    tokenizer: dict[str, Any]
    text: dict[str, Any]
    harvest: dict[str, Any]
    context: int
    dtype: str
    sequences: int
    shard_sequences: int
    hooks: dict[str, HookRecord]
    shards: tuple[ShardRecord, ...]
    made: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Checksum] = field(default_factory=dict)
    sealed: bool = False

    @property
    def tokens(self) -> int:
        """Positions in the store, those that do not count included."""
        return self.sequences * self.context

    @property
    def fingerprint(self) -> str:
        """Tells stores apart: changes with any byte of any shard."""
        return config.fingerprint([[s.file, s.sha256] for s in self.shards], 12)

    def hook(self, store: str, name: str = "") -> tuple[str, HookRecord]:
        """A hook point and its record; the only one when no name is given. `store` is the store's name, for the line.

        Raises:
            UserError: it is not in the store, or there are several and none was named.
        """
        if not name and len(self.hooks) == 1:
            name = next(iter(self.hooks))
        if name not in self.hooks:
            said = f"has no hook point {name!r}" if name else "has several hook points, so name one with --hook"
            raise UserError(f"store {store} {said}; {choices(name, self.hooks)}")
        return name, self.hooks[name]

    def layout(self, shard: ShardRecord) -> dict[str, tuple[str, tuple[int, ...]]]:
        """The tensors that a shard holds: the type of their numbers, as safetensors calls it, and their shape."""
        place = (shard.sequences, self.context)
        tensors: dict[str, tuple[str, tuple[int, ...]]] = {"tokens": ("I32", place)}
        for hook, record in self.hooks.items():
            tensors |= {hook: (KINDS[self.dtype], (*place, record.width)), keep_key(hook): ("BOOL", place)}
        return tensors

    def write(self, folder: Path) -> None:
        """Write it, with what lies beside the shards and a seal, aside and renamed: the folder is now a store."""
        paths = (path for name in BESIDE for path in sorted((folder / name).rglob("[!.]*")) or [folder / name])
        files = {path.relative_to(folder).as_posix(): Checksum.of(path) for path in paths if path.is_file()}
        data = dataclasses.asdict(dataclasses.replace(self, files=files))
        del data["sealed"]
        write_json(folder / NAME, data)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and check it.

        Raises:
            UserError: not a store, an unfinished one, one of a newer version, or a damaged manifest.
        """
        path = folder / NAME
        try:
            data, sealed = read_json(path, MEND)
        except FileNotFoundError:
            if (folder / "plan.json").exists():
                raise UserError(f"{folder}: an unfinished store; give its `hsae harvest` command again") from None
            raise UserError(f"{folder}: not an activation store (it has no {NAME})") from None
        if data.get("format") != FORMAT:
            raise UserError(f"{path}: not the manifest of an activation store")
        if data.get("version") != VERSION:
            raise UserError(f"{path}: format version {data.get('version')}, this hsae reads version {VERSION}")
        data.setdefault("made", {})
        free = {name: data.pop(name, None) for name in (*FREE, "made")}
        for name, table in free.items():
            if not isinstance(table, dict):
                raise UserError(f"{path}: damaged: {name} is not a table")
        typed = config.build(_Typed, data, str(path))
        manifest = cls(**free, **{f.name: getattr(typed, f.name) for f in dataclasses.fields(typed)}, sealed=sealed)
        for wrong in (_leaves(manifest), _contradiction(manifest)):
            if wrong:
                raise UserError(f"{path}: damaged: {wrong}; {MEND}")
        return manifest


@dataclass(frozen=True)
class _Typed:
    """The part of the manifest whose types matter to the code."""

    format: str
    version: int
    context: int
    dtype: str
    sequences: int
    shard_sequences: int
    hooks: dict[str, HookRecord]
    shards: tuple[ShardRecord, ...]
    files: dict[str, Checksum] = field(default_factory=dict)


def _leaves(manifest: Manifest) -> str:
    """A name that is none of a file in the store's folder; empty: they all are."""
    for shard in manifest.shards:
        if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", shard.file) or shard.file in BESIDE:
            return f"shard name {shard.file!r} leaves the store's folder, or is no shard's"
    for name in manifest.files:
        parts = name.split("/")
        if parts[0] not in BESIDE or "\\" in name or any(not part or part.startswith(".") for part in parts):
            return f"file name {name!r} leaves the store's folder, or is no file of a store"
    return ""


def _contradiction(manifest: Manifest) -> str:
    """What in a manifest cannot be; empty: it can all be."""
    shards, hooks, places = manifest.shards, manifest.hooks, manifest.tokens
    if manifest.dtype not in DTYPES:
        return f"dtype {manifest.dtype!r} is none of {', '.join(DTYPES)}"
    if min(manifest.context, manifest.shard_sequences, len(hooks), len(shards)) < 1:
        return "it has no shards, no hook points or no positions"
    full = all(shard.sequences == manifest.shard_sequences for shard in shards[:-1])
    if not full or not 1 <= shards[-1].sequences <= manifest.shard_sequences:
        return f"a shard does not hold {manifest.shard_sequences} sequences"
    if sum(shard.sequences for shard in shards) != manifest.sequences:
        return f"{manifest.sequences} sequences are not the sum of the shards'"
    # Above 99,999 shards names get longer.
    order = [(len(shard.file), shard.file) for shard in shards]
    if any(one >= two for one, two in pairwise(order)):
        return "shards are named twice or out of order"
    if len(names := manifest.layout(shards[0])) != 1 + 2 * len(hooks):
        return f"hook points {', '.join(names)} get in each other's way"
    for name, hook in hooks.items():
        if wrong := _of_hook(hook, [shard.kept.get(name, -1) for shard in shards], places):
            return f"{name}: {wrong}"
    position = 4 + sum(hook.width * BYTES[manifest.dtype] + 1 for hook in hooks.values())
    for shard in shards:
        most, header = shard.sequences * manifest.context, shard.bytes - 8
        if shard.kept.keys() != hooks.keys() or max(shard.kept.values()) > most:
            return f"{shard.file}: not the positions of its hook points"
        if not shard.checksum.possible or not 0 < header - most * position <= LONGEST:
            return f"{shard.file}: {shard.bytes} bytes cannot hold {shard.sequences} sequences"
    if wrong := [name for name, checksum in manifest.files.items() if not checksum.possible]:
        return f"{wrong[0]}: no file has such a checksum"
    return ""


def _of_hook(hook: HookRecord, kept: list[int], places: int) -> str:
    if hook.width < 1 or not hook.width == len(hook.mean) == len(hook.second_moment):
        return f"moments of {len(hook.mean)} and {len(hook.second_moment)} dimensions, width {hook.width}"
    if (
        min(kept) < 0
        or sum(kept) != hook.kept
        or not all(0 <= n <= places for n in (hook.kept, *hook.excluded.values()))
    ):
        return f"{hook.kept} positions that count are not the sum of the shards'"
    # E[x]² ≤ E[x²], but for rounding.
    if any(mean * mean > square * (1 + 1e-9) for mean, square in zip(hook.mean, hook.second_moment, strict=True)):
        return "no numbers have such moments"
    return ""
