"""One harvest: the plan, the shards, the manifest."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from rich.console import Console
from torch import Tensor

from hsae import config as configs
from hsae.errors import UserError
from hsae.figures import duration, size
from hsae.files import alone
from hsae.harvesting.config import HarvestConfig
from hsae.harvesting.exclude import keep_mask
from hsae.harvesting.packing import Cursor, Packing, Row, Rows
from hsae.harvesting.text import Source
from hsae.lm import LM
from hsae.loading import files_fingerprint
from hsae.progress import Bar, say
from hsae.store import Manifest, StoreWriter
from hsae.store.manifest import BYTES, DTYPES
from hsae.store.writer import PLAN


class Job:
    """One harvest: the plan, the shards, the manifest."""

    def __init__(self, config: HarvestConfig, lm: LM, source: Source, folder: Path, console: Console) -> None:
        self.config, self.lm, self.source, self.folder, self.console = config, lm, source, folder, console
        if config.context > lm.context_limit:
            raise UserError(f"{config.model} takes {lm.context_limit} tokens at most, --context is {config.context}")
        tokenizer = lm.tokenizer
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.packing = Packing(
            context=config.context,
            pack=config.pack,
            separator=config.separator,
            prepend_bos=config.prepend_bos,
            dedupe=config.dedupe,
            eos=tokenizer.eos_token_id,
            bos=tokenizer.bos_token_id,
            pad=pad if pad is not None else 0,
            vocabulary=lm.vocabulary,
        )
        self.widths = lm.widths(config.hooks)
        self.shard_sequences = config.shard_sequences(max(self.widths.values()))
        self.tables = self._tables()

    def _tables(self) -> dict[str, dict[str, Any]]:
        """What the manifest says of model, tokeniser, text and settings; a beginning goes on only with equal ones."""
        config, lm, tokenizer = self.config, self.lm, self.lm.tokenizer
        return {
            "model": {
                "name": config.model,
                "revision": lm.revision,
                "fingerprint": lm.fingerprint,
                "files": files_fingerprint(config.model),
                "architecture": lm.bridge.cfg.architecture,
                "layers": lm.bridge.cfg.n_layers,
                "width": lm.bridge.cfg.d_model,
                "vocabulary": lm.vocabulary,
            },
            "tokenizer": {
                "fingerprint": lm.tokenizer_fingerprint,
                "entries": len(tokenizer),
                "eos": tokenizer.eos_token_id,
                "bos": tokenizer.bos_token_id,
                "pad": self.packing.pad,
                "special": list(lm.special_ids),
            },
            "text": {"data": list(config.data), **self.source.record()},
            "harvest": configs.table(config) | {"name": config.store_name, "device": lm.device},
        }

    def run(self) -> Path:
        """Harvest what is missing."""
        self._check_disk()
        rows, first = self.packing.rows(self.source, self.lm.tokenizer), None
        if not (self.folder / PLAN).exists():
            # Mistakes in the text show here, before anything is made.
            first = self._some(next(rows, None))
        with alone(self.folder, "hsae harvest"):
            writer = StoreWriter(self.folder, self.tables, self.config.dtype)
            if writer.resume:
                rows, first = self.packing.rows(self.source, self.lm.tokenizer, Cursor(**writer.resume)), None
            return self._harvest(writer, rows, itertools.chain([first] if first else [], rows))

    def _some(self, row: Row | None) -> Row:
        if row is None:
            data = ", ".join(self.config.data)
            raise UserError(f"{data}: not enough text for one context of {self.config.context} tokens")
        return row

    def _harvest(self, writer: StoreWriter, rows: Rows, stream: Iterator[Row]) -> Path:
        """The shards that are missing, then the manifest. `stream` gives the rows, with any that was peeked at."""
        config, done = self.config, writer.sequences
        cursor = Cursor(**writer.resume) if writer.resume else Cursor()
        self._announce(done)
        bar = Bar(self.console, "harvest", config.sequences * config.context, done * config.context)
        try:
            with bar:
                for shard in self._shards(itertools.islice(stream, config.sequences - done), bar):
                    cursor = shard.cursor
                    self._write(writer, shard)
        except KeyboardInterrupt:
            kept = f"{writer.sequences:,} of {config.sequences:,} sequences are kept"
            raise KeyboardInterrupt(f"interrupted; {kept}, and the same command goes on from there") from None
        manifest = self._finish(writer, rows, cursor)
        if manifest.sequences < config.sequences:
            short = f"{manifest.tokens:,} of the {config.sequences * config.context:,} tokens asked for"
            say(self.console, f"the text ran out: the store holds {short}")
        say(self.console, facts(manifest, self.folder))
        if bar.rate:
            say(self.console, f"{duration(bar.seconds)}, {bar.rate:,.0f} tokens/s")
        return self.folder

    def _check_disk(self) -> None:
        """Too little disk is an error now, not near the end."""
        config = self.config
        position = 4 + sum(width * BYTES[config.dtype] + 1 for width in self.widths.values())
        self.bytes = config.sequences * config.context * position
        home = next(parent for parent in self.folder.absolute().parents if parent.exists())
        self.free = shutil.disk_usage(home).free
        there = sum(file.stat().st_size for file in self.folder.glob("*.safetensors"))
        # A little is left for the tokeniser, the manifest and the file system.
        if self.bytes * 1.01 - there + (16 << 20) > self.free:
            raise UserError(
                f"{self.folder}: {size(self.bytes - there)} more are needed, {size(self.free)} are free; "
                "lower --tokens, take --dtype bf16, or set HSAE_CACHE to a larger disk"
            )

    def _announce(self, done: int) -> None:
        config = self.config
        shards = -(-config.sequences // self.shard_sequences)
        seconds = self._seconds_per_sequence() * (config.sequences - done)
        say(self.console, f"{config.model} on {self.lm.device} -> {self.folder}")
        for hook, width in self.widths.items():
            say(self.console, f"{hook}: width {width}, {config.dtype}")
        say(
            self.console,
            f"{config.sequences:,} sequences of {config.context} in {shards:,} shard{'s' if shards > 1 else ''}, "
            f"{size(self.bytes)} ({size(self.free)} free), about {duration(seconds)}",
        )
        if done:
            say(self.console, f"going on after {done:,} sequences")

    def _seconds_per_sequence(self) -> float:
        """From one batch of made-up tokens, after one that warms up."""
        config = self.config
        tokens = torch.arange(config.batch_sequences * config.context).view(-1, config.context) % self.lm.vocabulary
        start = 0.0
        for _ in range(2):
            start = time.perf_counter()
            for values in self.lm.tap(tokens, config.hooks).values():
                values.cpu()
        return (time.perf_counter() - start) / config.batch_sequences

    def _shards(self, rows: Iterator[Row], bar: Bar) -> Iterator[Shard]:
        config = self.config
        while batch := list(itertools.islice(rows, self.shard_sequences)):
            shard = Shard.empty(len(batch), config.context, self.widths, getattr(torch, DTYPES[config.dtype]))
            for start in range(0, len(batch), config.batch_sequences):
                part = batch[start : start + config.batch_sequences]
                tokens = torch.from_numpy(np.stack([row.tokens for row in part]))
                lengths = torch.tensor([row.length for row in part])
                here = slice(start, start + len(part))
                shard.tokens[here] = tokens
                for hook, values in self.lm.tap(tokens, config.hooks).items():
                    keep, excluded = keep_mask(config, tokens, lengths, values, self.lm.special_ids)
                    shard.activations[hook][here] = values.to(shard.activations[hook].dtype)
                    shard.keep[hook][here] = keep
                    for reason, count in excluded.items():
                        shard.excluded[hook][reason] = shard.excluded[hook].get(reason, 0) + count
                bar.advance(tokens.numel())
            yield dataclasses.replace(shard, cursor=batch[-1].cursor)

    def _write(self, writer: StoreWriter, shard: Shard) -> None:
        try:
            writer.write(
                shard.tokens, shard.activations, shard.keep, shard.excluded, resume=dataclasses.asdict(shard.cursor)
            )
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise UserError(f"{self.folder}: the disk is full; free some of it, and the same command goes on") from None

    def _finish(self, writer: StoreWriter, rows: Rows, cursor: Cursor) -> Manifest:
        ran_out = writer.sequences < self.config.sequences
        self.lm.tokenizer.save_pretrained(self.folder / "tokenizer")
        text = self.tables["text"] | {
            "documents": cursor.documents,
            # Those behind the last document that was used are known only when the text was read to its end.
            "duplicates": rows.duplicates if ran_out else cursor.duplicates,
            "truncated": cursor.truncated,
            "ran_out": ran_out,
        }
        return writer.finish(
            shard_sequences=self.shard_sequences, context=self.config.context, **(self.tables | {"text": text})
        )


@dataclass(frozen=True)
class Shard:
    """One shard in memory, in the store's dtype."""

    tokens: Int[Tensor, "sequence position"]
    activations: dict[str, Float[Tensor, "sequence position width"]]
    keep: dict[str, Bool[Tensor, "sequence position"]]
    excluded: dict[str, dict[str, int]]
    cursor: Cursor

    @classmethod
    def empty(cls, sequences: int, context: int, widths: Mapping[str, int], dtype: torch.dtype) -> Shard:
        return cls(
            torch.empty(sequences, context, dtype=torch.int32),
            {hook: torch.empty(sequences, context, width, dtype=dtype) for hook, width in widths.items()},
            {hook: torch.empty(sequences, context, dtype=torch.bool) for hook in widths},
            {hook: {} for hook in widths},
            Cursor(),
        )


def facts(manifest: Manifest, folder: Path) -> str:
    """A store in a few lines. The variance is per dimension."""
    total = sum(shard.bytes for shard in manifest.shards)
    lines = [
        f"{folder}: {manifest.tokens:,} tokens, {manifest.sequences:,} sequences of {manifest.context}, "
        f"{size(total)} in {manifest.dtype}"
    ]
    for hook, record in manifest.hooks.items():
        left = ", ".join(f"{count:,} {reason}" for reason, count in record.excluded.items())
        lines.append(
            f"{hook}: width {record.width}, {record.kept:,} positions count"
            f"{f' (left out: {left})' if left else ''}, variance {record.variance:.4g}"
        )
    return "\n".join(lines)
