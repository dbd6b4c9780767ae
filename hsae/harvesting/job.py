"""One harvest: the plan, the shards, the manifest."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from hsae import config as configs
from hsae.errors import UserError
from hsae.figures import duration, size
from hsae.files import alone
from hsae.harvesting.config import HarvestConfig
from hsae.harvesting.exclude import keep_mask
from hsae.harvesting.feed import Feed
from hsae.harvesting.packing import Cursor, Packing
from hsae.harvesting.shard import Shard
from hsae.harvesting.text import Source
from hsae.lm import LM
from hsae.loading import files_fingerprint
from hsae.progress import Bar, say
from hsae.store import Manifest, StoreWriter
from hsae.store.manifest import BYTES, DTYPES
from hsae.store.writer import PLAN

# How many tokens are made ahead of the model: a few times what the tokeniser makes at once.
TOKENS_AHEAD = 1 << 17


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
        with ExitStack() as stack:
            feed = None
            if not (self.folder / PLAN).exists():
                # Mistakes in the text show here, before anything is made.
                feed = stack.enter_context(self._feed(Cursor(), 0))
                self._require_text(feed)
            stack.enter_context(alone(self.folder, "hsae harvest"))
            writer = StoreWriter(self.folder, self.tables, self.config.dtype)
            if feed is None or writer.resume:
                cursor = Cursor(**writer.resume) if writer.resume else Cursor()
                feed = stack.enter_context(self._feed(cursor, writer.sequences))
                if not writer.resume:
                    self._require_text(feed)
            return self._harvest(writer, feed)

    def _feed(self, cursor: Cursor, done: int) -> Feed:
        """Batches from a cursor on, where so many sequences are done. No batch lies in two shards."""
        config = self.config
        sizes = (
            min(config.batch_sequences, shard + self.shard_sequences - start, config.sequences - start)
            for shard in range(done, config.sequences, self.shard_sequences)
            for start in range(shard, min(shard + self.shard_sequences, config.sequences), config.batch_sequences)
        )
        rows = self.packing.rows(self.source, self.lm.tokenizer, cursor)
        return Feed(rows, sizes, TOKENS_AHEAD // (config.batch_sequences * config.context))

    def _require_text(self, feed: Feed) -> None:
        if feed.peek() is None:
            data = ", ".join(self.config.data)
            raise UserError(f"{data}: not enough text for one context of {self.config.context} tokens")

    def _harvest(self, writer: StoreWriter, feed: Feed) -> Path:
        """The shards that are missing, then the manifest."""
        config, done = self.config, writer.sequences
        first = feed.peek()
        differs = self.lm.trust_fast(first.tokens, config.hooks) if first is not None else ""
        self._announce(done)
        if differs:
            say(self.console, differs)
        bar = Bar(self.console, "harvest", config.sequences * config.context, done * config.context)
        try:
            with bar, ThreadPoolExecutor(1, thread_name_prefix="write") as thread:
                writing: Future[None] | None = None
                for shard in self._shards(feed, bar):
                    # One shard is written while the next is computed, never two.
                    if writing is not None:
                        writing.result()
                    writing = thread.submit(self._write, writer, shard)
                if writing is not None:
                    writing.result()
        except KeyboardInterrupt:
            kept = f"{writer.sequences:,} of {config.sequences:,} sequences are kept"
            raise KeyboardInterrupt(f"interrupted; {kept}, and the same command goes on from there") from None
        manifest = self._finish(writer, feed)
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

    def _shards(self, feed: Feed, bar: Bar) -> Iterator[Shard]:
        """Whole shards, and what is left at the end. Two take turns: one is filled while the other is used."""
        config = self.config
        sequences, dtype = min(self.shard_sequences, config.sequences), getattr(torch, DTYPES[config.dtype])
        room = itertools.cycle(Shard(sequences, config.context, self.widths, dtype) for _ in range(2))
        shard = next(room)
        for batch in feed:
            activations = self.lm.tap(batch.tokens, config.hooks)
            keep = {
                hook: keep_mask(config, batch.tokens, batch.lengths, values, self.lm.special_ids)
                for hook, values in activations.items()
            }
            shard.add(batch, activations, keep)
            bar.advance(batch.tokens.numel())
            if shard.full:
                yield shard
                shard = next(room)
                shard.clear()
        if shard.sequences:
            yield shard

    def _write(self, writer: StoreWriter, shard: Shard) -> None:
        try:
            writer.write(
                shard.tokens, shard.activations, shard.keep, shard.excluded, resume=dataclasses.asdict(shard.cursor)
            )
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise UserError(f"{self.folder}: the disk is full; free some of it, and the same command goes on") from None

    def _finish(self, writer: StoreWriter, feed: Feed) -> Manifest:
        ran_out, cursor = writer.sequences < self.config.sequences, Cursor(**writer.resume)
        self.lm.tokenizer.save_pretrained(self.folder / "tokenizer")
        text = self.tables["text"] | {
            "documents": cursor.documents,
            # Those behind the last document that was used are known only when the text was read to its end.
            "duplicates": feed.duplicates if ran_out else cursor.duplicates,
            "truncated": cursor.truncated,
            "ran_out": ran_out,
        }
        return writer.finish(
            shard_sequences=self.shard_sequences, context=self.config.context, **(self.tables | {"text": text})
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
