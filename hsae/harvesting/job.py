"""One harvest, by one process or several: the plan, the shards, the manifest."""

from __future__ import annotations

import dataclasses
import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from hsae import config as configs
from hsae.errors import Interrupted, UserError
from hsae.figures import duration, size
from hsae.files import alone
from hsae.harvesting import ways
from hsae.harvesting.config import HarvestConfig
from hsae.harvesting.feed import Feed, Layout
from hsae.harvesting.finish import SEEN, End, facts, finish, missing, short
from hsae.harvesting.finite import make_finite
from hsae.harvesting.packing import Cursor, Packing
from hsae.harvesting.passes import Passes
from hsae.harvesting.ranks import Crew
from hsae.harvesting.shard import Shard
from hsae.harvesting.text import Source
from hsae.harvesting.watch import Watch
from hsae.interrupt import interruptible
from hsae.lm import LM
from hsae.loading import files_fingerprint
from hsae.progress import Bar, say
from hsae.store import Manifest, StoreWriter
from hsae.store.manifest import BYTES, NAME
from hsae.store.place import Place
from hsae.store.upload import UploadingWriter
from hsae.store.writer import PLAN, NotFinite


class Job:
    """One harvest.

    Args:
        config: what to harvest.
        lm: the model.
        source: the text.
        folder: the store's.
        console: where to say so.
        crew: the processes that harvest it together.
        place: where each shard goes when it is whole; None: it stays in the folder.
    """

    def __init__(
        self,
        config: HarvestConfig,
        lm: LM,
        source: Source,
        folder: Path,
        console: Console,
        crew: Crew,
        place: Place | None = None,
    ) -> None:
        self.config, self.lm, self.source, self.folder, self.console = config, lm, source, folder, console
        self.place, self.where = place, place.url if place else str(folder)
        self.crew, self.packing, self.widths = crew, packing_for(config, lm), lm.widths(config.hooks)
        shard = config.shard_sequences(max(self.widths.values()))
        self.layout = Layout(config.sequences, shard, config.batch_sequences)
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
            # Without the number of a process's own GPU.
            "harvest": configs.table(config) | {"name": config.store_name, "device": torch.device(lm.device).type},
        }

    def run(self) -> bool:
        """Harvest what is missing; False if another harvest has made the store since it was looked for."""
        crew, passes = self.crew, None
        with ExitStack() as stack:
            feed, writer, there = None, None, False
            with crew.agreed():
                if not crew.rank:
                    self._check_disk()
                    if PLAN not in self.place.files() if self.place else not (self.folder / PLAN).exists():
                        # Mistakes in the text show here, before anything is made.
                        feed = stack.enter_context(self._feed(range(0, self.layout.shards, crew.size), {}))
                        self._require_text(feed)
                    hold = stack.enter_context(alone(self.folder, "hsae harvest"))
                    there = NAME in (self.place.files() if self.place else os.listdir(self.folder))
                    writer = None if there else self._writer()
                    if crew.size > 1:
                        hold.share()
            if any(there for (there,) in crew.meet(int(there))):
                return False
            with crew.agreed():
                if crew.rank:
                    stack.enter_context(alone(self.folder, "hsae harvest", shared=True))
                    writer = self._writer()
                assert writer is not None
                passes = Passes(self.config, self.lm, self.widths, self._say)
                before = (record["told"]["made"] for record in writer.records.values())
                if note := ways.going_on(self.folder, before, passes.way):
                    self._say(note)
            wanted = missing(self.layout, writer)
            self._require_one_view(wanted, passes.way)
            if feed is None or writer.records:
                known = {
                    index + 1: Cursor(**record["told"]["resume"])
                    for index, record in writer.records.items()
                    if not short(self.layout, index, record)
                }
                feed = stack.enter_context(self._feed(wanted[crew.rank :: crew.size], known))
                if not crew.rank and not writer.records:
                    self._require_text(feed)
            self._harvest(writer, feed, passes)
            return True

    def _say(self, line: str) -> None:
        say(self.console, line)

    def _writer(self) -> StoreWriter:
        if self.place is None:
            return StoreWriter(self.folder, self.tables, self.config.dtype)
        # A folder of its own, since every process keeps its own copy of the journal.
        return UploadingWriter(self.folder / str(self.crew.rank), self.place, self.tables, self.config.dtype)

    def _feed(self, shards: Sequence[int], known: Mapping[int, Cursor]) -> Feed:
        return Feed(self.packing, self.source, self.lm.tokenizer, self.layout, shards, known)

    def _require_text(self, feed: Feed) -> None:
        if feed.peek() is None:
            data = ", ".join(self.config.data)
            raise UserError(f"{data}: not enough text for one context of {self.config.context} tokens")

    def _require_one_view(self, wanted: Sequence[int], way: ways.Way) -> None:
        """All processes must see the same files, and compute in the same way."""
        seen = self.crew.meet(zlib.crc32(repr(wanted).encode()), zlib.crc32(repr(ways.kind(way)).encode()))
        if len({files for files, _ in seen}) > 1:
            raise UserError(f"{self.where}: not all processes see the same files there; give the same command again")
        if len({kind for _, kind in seen}) > 1:
            raise UserError(
                f"the processes compute in different ways (this one {ways.words(way)}), and last digits would differ; "
                "set HSAE_KERNELS=torch for all"
            )

    def _harvest(self, writer: StoreWriter, feed: Feed, passes: Passes) -> None:
        """The shards that are missing, then the manifest."""
        config, done = self.config, writer.sequences
        self._announce(done, passes.seconds_per_sequence)
        bar = Bar(self.console, "harvest", config.sequences * config.context, done * config.context)
        try:
            with interruptible() as interrupted, bar:
                tokens = self.layout.shard * config.context
                others = self.crew.size > 1 and not self.crew.rank
                watch = Watch(writer, feed, bar, tokens, others, interrupted, self._say)
                self._compute(writer, feed, passes, watch)
                told = (-1 if feed.ended is None else feed.ended, feed.duplicates)
                ends = [End(*each) for each in self.crew.meet(*told, meanwhile=watch.wait) if each[0] >= 0]
        except KeyboardInterrupt:
            kept = f"{writer.sequences:,} of {config.sequences:,} sequences are kept"
            kept = "whole shards are kept" if self.crew.size > 1 else kept
            raise Interrupted(f"interrupted; {kept}, and the same command goes on from there") from None
        with self.crew.agreed():
            if not self.crew.rank:
                patience = SEEN if self.crew.size > 1 else 0.0
                made = finish(writer, self.layout, self.tables, config.context, self.lm.tokenizer, ends, patience)
                self._tell(made, bar)

    def _compute(self, writer: StoreWriter, feed: Feed, passes: Passes, watch: Watch) -> None:
        """This process's shards."""
        with ThreadPoolExecutor(1, thread_name_prefix="write") as thread:
            writing: Future[None] | None = None
            for shard in passes.shards(feed, self.layout, watch.after):
                # One shard is written while the next is computed, never two.
                if writing is not None:
                    writing.result()
                writing = thread.submit(self._write, writer, shard, passes.way, feed)
                watch.whole()
                if watch.interrupted():
                    break
            if writing is not None:
                writing.result()
        if watch.interrupted():
            raise KeyboardInterrupt

    def _write(self, writer: StoreWriter, shard: Shard, way: ways.Way, feed: Feed) -> None:
        sequences = self.layout.sequences_of(shard.index)
        told: dict[str, Any] = {
            "cursor": dataclasses.asdict(shard.start),
            "resume": dataclasses.asdict(shard.cursor),
            "made": dict(way),
        }
        if shard.sequences < len(sequences):
            # The text has ended: now all that were dropped are known.
            told["duplicates"] = feed.duplicates
        try:
            writer.write(shard.index, shard.tokens, shard.activations, shard.keep, shard.excluded, **told)
        except NotFinite:
            told["clipped"] = make_finite(shard, self.config, sequences.start, self.lm.tokenizer)
            writer.write(shard.index, shard.tokens, shard.activations, shard.keep, shard.excluded, **told)

    def _check_disk(self) -> None:
        """Too little disk is an error now, not near the end."""
        home = next(parent for parent in self.folder.absolute().parents if parent.exists())
        free = shutil.disk_usage(home).free
        there = sum(file.stat().st_size for file in self.folder.glob("*.safetensors"))
        # What is uploaded leaves the disk: one shard is, while the next is written.
        needed = min(self._bytes, 2 * self._bytes // self.layout.shards) if self.place else self._bytes
        # A little is left for the tokeniser, the manifest and the file system.
        if needed * 1.01 - there + (16 << 20) > free:
            raise UserError(
                f"{self.folder}: {size(needed - there)} more are needed, {size(free)} are free; "
                "lower --tokens, take --dtype bf16, or set HSAE_CACHE to a larger disk"
            )

    @property
    def _bytes(self) -> int:
        """What the store's tensors take."""
        position = 4 + sum(width * BYTES[self.config.dtype] + 1 for width in self.widths.values())
        return self.config.sequences * self.config.context * position

    def _announce(self, done: int, seconds: float) -> None:
        config, ranks = self.config, self.crew.size
        by = f", {ranks} processes" if ranks > 1 else ""
        self._say(f"{config.model} on {self.lm.device}{by} -> {self.where}")
        for hook, width in self.widths.items():
            self._say(f"{hook}: width {width}, {config.dtype}")
        free, shards = shutil.disk_usage(self.folder).free, self.layout.shards
        self._say(
            f"{config.sequences:,} sequences of {config.context} in {shards:,} shard{'s' if shards > 1 else ''}, "
            f"{size(self._bytes)} ({size(free)} free), about {duration(seconds * (config.sequences - done) / ranks)}"
        )
        if done:
            self._say(f"going on after {done:,} sequences")

    def _tell(self, manifest: Manifest, bar: Bar) -> None:
        config = self.config
        if manifest.sequences < config.sequences:
            held = f"{manifest.tokens:,} of the {config.sequences * config.context:,} tokens asked for"
            self._say(f"the text ran out: the store holds {held}")
        self._say(facts(manifest, self.where))
        if bar.rate:
            self._say(f"{duration(bar.seconds)}, {bar.rate:,.0f} tokens/s")


def packing_for(config: HarvestConfig, lm: LM) -> Packing:
    """How a config's documents become rows for a model.

    Raises:
        UserError: the model takes no contexts of that length, or its tokeniser lacks a token that is wanted.
    """
    if config.context > lm.context_limit:
        raise UserError(f"{config.model} takes {lm.context_limit} tokens at most, --context is {config.context}")
    tokenizer = lm.tokenizer
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return Packing(
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
