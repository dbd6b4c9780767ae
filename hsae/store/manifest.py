"""What a store says of itself: `manifest.json`, present only once the store is whole."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hsae import config
from hsae.errors import UserError, choices
from hsae.files import replacing

FORMAT = "hsae-activations"
VERSION = 1
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
NAME = "manifest.json"


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
    """The whole record of a store. `model`, `tokenizer`, `text`, `harvest` are plain tables, for the reader's eye."""

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

    def write(self, folder: Path) -> None:
        """Write it aside and rename it into place: from then on the folder is a store."""
        with replacing(folder / NAME) as aside:
            aside.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and check it.

        Raises:
            UserError: not a store, an unfinished one, one of a newer version, or a damaged manifest.
        """
        path = folder / NAME
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            if (folder / "plan.json").exists():
                raise UserError(f"{folder}: an unfinished store; give its `hsae harvest` command again") from None
            raise UserError(f"{folder}: not an activation store (it has no {NAME})") from None
        except (ValueError, OSError) as error:
            raise UserError(f"{path}: damaged or unreadable ({error}); harvest the store again") from None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise UserError(f"{path}: not the manifest of an activation store")
        if data.get("version") != VERSION:
            raise UserError(f"{path}: format version {data.get('version')}, this hsae reads version {VERSION}")
        for name in ("model", "tokenizer", "text", "harvest"):
            if not isinstance(data.get(name), dict):
                raise UserError(f"{path}: damaged: {name} is not a table")
        free = {name: data.pop(name) for name in ("model", "tokenizer", "text", "harvest")}
        typed = config.build(_Typed, data, str(path))
        for shard in typed.shards:
            if Path(shard.file).name != shard.file or shard.file in (".", ".."):
                raise UserError(f"{path}: shard name {shard.file!r} leaves the store's folder")
        return cls(**free, **{f.name: getattr(typed, f.name) for f in dataclasses.fields(typed)})


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
