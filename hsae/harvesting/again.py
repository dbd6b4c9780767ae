"""Some shards of a finished store, harvested again: bytes that were lost come back, and no others."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from hsae import config as configs
from hsae.errors import UserError
from hsae.files import alone, replacing
from hsae.harvesting.config import HarvestConfig
from hsae.harvesting.feed import Feed, Layout
from hsae.harvesting.finite import make_finite
from hsae.harvesting.job import packing_for
from hsae.harvesting.packing import Cursor
from hsae.harvesting.passes import Passes
from hsae.harvesting.sources import text_of
from hsae.lm import LM
from hsae.loading import load_lm
from hsae.progress import Bar, say
from hsae.store import Manifest
from hsae.store.manifest import NAME, ShardRecord, keep_key
from hsae.store.save import save


def again(folder: Path, manifest: Manifest, shards: Sequence[int], console: Console) -> list[int]:
    """Harvest some shards again, and put into the store those whose bytes are again what the manifest vouches for.

    The text is read from where the manifest says that a shard starts; in older stores, which do not say it, from the
    beginning.

    Args:
        folder: the store's.
        manifest: the store's.
        shards: their indices.
        console: where to say so.

    Returns:
        the indices of the shards that are as they were. For each of the others a line says why not.

    Raises:
        UserError: the store was not harvested; the model or the text is not there, or is another one; the store is
            being written.
    """
    config = _config(folder, manifest)
    lm = load_lm(
        config.model,
        config.device,
        str(manifest.model.get("revision") or config.model_revision),
        config.tokenizer,
        config.trust_remote_code,
    )
    source = text_of(config)
    differ = [
        what
        for what, was, now in (
            ("model", manifest.model.get("fingerprint"), lm.fingerprint),
            ("tokeniser", manifest.tokenizer.get("fingerprint"), lm.tokenizer_fingerprint),
            ("text", _said(manifest, source.record()), source.record()),
        )
        if was != now
    ]
    if differ:
        raise UserError(f"{folder}: the {' and the '.join(differ)} it was made from changed; harvest it anew")
    with alone(folder, "process"):
        return _again(folder, manifest, sorted(shards), config, lm, console)


def _again(
    folder: Path, manifest: Manifest, shards: list[int], config: HarvestConfig, lm: LM, console: Console
) -> list[int]:
    layout = Layout(manifest.sequences, manifest.shard_sequences, config.batch_sequences)
    known = {index: Cursor(**shard.cursor) for index, shard in enumerate(manifest.shards) if shard.cursor}
    widths = {hook: manifest.hooks[hook].width for hook in config.hooks}
    passes = Passes(config, lm, widths, lambda line: say(console, line))
    total = sum(manifest.shards[index].sequences for index in shards) * config.context
    restored: list[int] = []
    with (
        Feed(packing_for(config, lm), text_of(config), lm.tokenizer, layout, shards, known) as feed,
        Bar(console, "repair", total) as bar,
    ):
        for shard in passes.shards(feed, layout, lambda batch: bar.advance(batch.tokens.numel())):
            make_finite(shard, config, layout.sequences_of(shard.index).start, lm.tokenizer)
            record = manifest.shards[shard.index]
            keep = {keep_key(hook): mask for hook, mask in shard.keep.items()}
            try:
                with replacing(folder / record.file) as aside:
                    if save(aside, {"tokens": shard.tokens, **shard.activations, **keep}) != record.sha256:
                        raise _OtherBytes
            except _OtherBytes:
                say(console, _why(record, manifest, passes))
            else:
                restored.append(shard.index)
    return restored


class _OtherBytes(Exception):
    """A shard came out differently, so it is not put into the store."""


def _config(folder: Path, manifest: Manifest) -> HarvestConfig:
    """The settings that a store was harvested with."""
    fields = {field.name for field in dataclasses.fields(HarvestConfig)}
    if not manifest.harvest.keys() >= {"model", "data", "hooks"}:
        raise UserError(f"{folder}: its data was not harvested from a model, so it cannot be harvested again")
    table = {key: value for key, value in manifest.harvest.items() if key in fields}
    config = configs.build(HarvestConfig, table, str(folder / NAME))
    if set(config.hooks) != set(manifest.hooks) or config.context != manifest.context:
        raise UserError(f"{folder / NAME}: its settings are not those of its shards; harvest the store anew")
    return config


def _said(manifest: Manifest, record: dict[str, object]) -> dict[str, object]:
    """What the manifest says of the text where a source says something."""
    return {key: manifest.text.get(key) for key in record}


def _why(record: ShardRecord, manifest: Manifest, passes: Passes) -> str:
    ways = [{key: way[key] for key in way if key != "shards"} for way in manifest.made.get("ways", [])]
    line = f"{record.file}: comes out with other bytes than it had, so it is left as it is"
    if passes.way in ways or not ways:
        return line
    was = "; ".join(", ".join(f"{key} {value}" for key, value in way.items()) for way in ways)
    now = ", ".join(f"{key} {value}" for key, value in passes.way.items())
    return f"{line}: it was computed with {was}, now with {now}"
