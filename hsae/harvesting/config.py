"""What `hsae harvest` can be told."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hsae import config as configs
from hsae.config import later, require
from hsae.files import is_url
from hsae.harvesting.packing import Separator
from hsae.store.manifest import BYTES


@dataclass(frozen=True)
class HarvestConfig:
    """What to harvest: a model, its hook points, text, and the shape of the store."""

    model: str = "roneneldan/TinyStories-1M"
    """Hub id, local folder in the hub's layout, .gguf file, or `bundled`."""
    hooks: tuple[str, ...] = ("blocks.4.hook_resid_pre",)
    """TransformerLens hook points, all harvested in one pass."""
    data: tuple[str, ...] = ("roneneldan/TinyStories",)
    """A hub dataset (`owner/name` or `owner/name:config`), local .txt, .jsonl, .parquet or .npy files, or `bundled`."""
    tokens: int = 10_000_000
    """Positions to harvest, padding included; rounded up to whole contexts."""
    context: int = 512
    """Tokens in a context."""
    name: str = ""
    """The store's name; by default made of model, data and a fingerprint of this config."""
    to: str = later("")
    """URL of the folder to harvest to, such as s3://bucket/folder; empty: a folder of the name under the cache."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """How activations are stored; the model computes in fp32."""
    split: str = "train"
    """Split of a hub dataset."""
    column: str = ""
    """Column of the data; by default text, else input_ids or tokens (lists of numbers are token ids already made)."""
    pack: Literal["packed", "documents"] = "packed"
    """`packed` fills every context; `documents` gives each one a row, padded on the right; padding never counts."""
    separator: Separator = "auto"
    """Between packed documents: eos after each, bos before each, or none; auto is eos for text, none for token ids."""
    prepend_bos: bool = False
    """Open every context with the beginning-of-text token."""
    document_separator: str = "<|endoftext|>"
    r"""Cuts a .txt into documents, e.g. "\n\n" for blank lines; a document over 1 MiB is cut at a line end."""
    dedupe: bool = False
    """Drop documents that equal an earlier one."""
    exclude_special: bool = False
    """Special tokens do not count: they stay in the store, out of training, moments, metrics and evidence."""
    exclude_first: int = 0
    """The first positions of each context do not count (attention sinks)."""
    exclude_norm: float = 0.0
    """Positions whose norm is above this many times the median of their context do not count; 0 keeps all."""
    non_finite: Literal["stop", "drop", "clip"] = later("stop")
    """NaN, infinity, or more than the dtype holds: stop; drop such positions (they do not count, and are stored as 0);
    or clip (NaN to 0, the rest to the largest number of the dtype)."""
    batch_sequences: int = 4
    """Contexts in one pass of the model; more pay on a GPU, on a CPU they only cost memory."""
    shard_mib: int = 32
    """Size of a shard, for the widest hook point."""
    device: str = "auto"
    """cuda, mps, cpu, or auto."""
    tokenizer: str = ""
    """Hub id or folder of the tokeniser; by default the model's own."""
    model_revision: str = ""
    """Branch, tag or commit of a hub model."""
    data_revision: str = ""
    """Branch, tag or commit of a hub dataset."""
    trust_remote_code: bool = False
    """Let the model's repository run its own code."""

    def __post_init__(self) -> None:
        require(len(set(self.hooks)) == len(self.hooks) > 0, "hooks", "one or more different names", self.hooks)
        require(bool(self.data), "data", "a dataset or one or more files", self.data)
        require(self.context >= 2, "context", "at least 2", self.context)
        require(self.tokens >= 1, "tokens", "at least 1", self.tokens)
        require(0 <= self.exclude_first < self.context, "exclude_first", "from 0 to below context", self.exclude_first)
        require(self.exclude_norm == 0 or self.exclude_norm > 1, "exclude_norm", "0 or above 1", self.exclude_norm)
        require(self.batch_sequences >= 1, "batch_sequences", "at least 1", self.batch_sequences)
        require(self.shard_mib >= 1, "shard_mib", "at least 1", self.shard_mib)
        require(not self.to or is_url(self.to), "to", "a URL, such as s3://bucket/folder, or empty", self.to)
        require(re.fullmatch(r"(\w[\w.+-]*)?", self.name) is not None, "name", "letters, digits and . + - _", self.name)

    @property
    def sequences(self) -> int:
        """Contexts to harvest."""
        return -(-self.tokens // self.context)

    @property
    def store_name(self) -> str:
        """The given name, or one made of model, data and a fingerprint of what decides the store's content."""
        if self.name:
            return self.name
        content = {key: value for key, value in configs.table(self).items() if key not in ("name", "device")}
        words = [Path(self.model).stem if self.model.endswith(".gguf") else Path(self.model).name]
        words += [Path(self.data[0]).stem, configs.fingerprint(content)]
        return "_".join(re.sub(r"[^\w.+-]+", "-", word).strip("-.") or "x" for word in words)

    def shard_sequences(self, width: int) -> int:
        """Contexts in a shard: whole batches where they fit, so that no batch lies in two shards."""
        fit = max(1, (self.shard_mib << 20) // (self.context * width * BYTES[self.dtype]))
        return fit - fit % self.batch_sequences if fit > self.batch_sequences else fit
