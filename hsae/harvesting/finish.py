"""The end of a harvest: the shards of all its processes become one store."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hsae.errors import UserError, one_line
from hsae.figures import size
from hsae.files import naming
from hsae.harvesting import ways
from hsae.harvesting.feed import Layout
from hsae.harvesting.packing import Cursor
from hsae.store import Manifest, StoreWriter
from hsae.store.writer import TOKENIZER, Record

# Seconds until a file that another machine wrote must be seen here: network file systems remember what was there.
SEEN = 120.0
# Seconds between two looks.
LOOK = 1.0


@dataclass(frozen=True)
class End:
    """Where a text ended: how many sequences it made, and how many duplicate documents were dropped in all of it."""

    sequences: int
    duplicates: int


def short(layout: Layout, index: int, record: Record) -> bool:
    """Whether the text ended in a shard."""
    return record["sequences"] < len(layout.sequences_of(index))


def missing(layout: Layout, writer: StoreWriter) -> list[int]:
    """Shards that are still to be made; none behind one in which the text ended."""
    ends = (index for index, record in writer.records.items() if short(layout, index, record))
    return [index for index in range(next(ends, layout.shards)) if index not in writer.records]


def finish(
    writer: StoreWriter,
    layout: Layout,
    tables: dict[str, dict[str, Any]],
    context: int,
    tokenizer: Any,
    ends: Sequence[End],
    patience: float,
) -> Manifest:
    """Sum up, and write the manifest.

    Args:
        writer: of the store.
        layout: of the store.
        tables: the plan: what the manifest says of model, tokeniser, text and settings.
        context: positions in a sequence.
        tokenizer: saved with the store.
        ends: where the processes found the text's end, if any did.
        patience: seconds to wait for what other machines wrote.

    Raises:
        UserError: a shard is missing, no position counts at a hook point, or the disk is full.
    """
    records = _all_shards(writer, layout, ends, patience)
    last = records[-1]["told"]
    if "duplicates" in last:  # the text ended in the last shard, maybe in an earlier process
        ends = [*ends, End(writer.sequences, last["duplicates"])]
    cursor, ran_out = Cursor(**last["resume"]), writer.sequences < layout.sequences
    _save_tokenizer(writer, tokenizer)
    text = tables["text"] | {
        "documents": cursor.documents,
        # Those behind the last document that was used are known only when the text was read to its end.
        "duplicates": ends[0].duplicates if ran_out else cursor.duplicates,
        "truncated": cursor.truncated,
        "ran_out": ran_out,
    }
    clipped: dict[str, int] = {}
    for record in records:
        for hook, count in record["told"].get("clipped", {}).items():
            clipped[hook] = clipped.get(hook, 0) + count
    made = {"ways": ways.summed(record["told"]["made"] for record in records)}
    made |= {"clipped": clipped} if clipped else {}
    return writer.finish(shard_sequences=layout.shard, context=context, **(tables | {"text": text, "made": made}))


def _all_shards(writer: StoreWriter, layout: Layout, ends: Sequence[End], patience: float) -> list[Record]:
    """The journal's entries, by whichever process, in order."""
    start = time.monotonic()
    while True:
        writer.records = writer.whole_shards()
        gone = missing(layout, writer)
        if ends:
            gone = [index for index in gone if layout.sequences_of(index).start < ends[0].sequences]
        if not gone:
            return [writer.records[index] for index in range(len(writer.records))]
        if time.monotonic() - start >= patience:
            raise UserError(f"{writer.folder}: shard {gone[0]} is gone; give the same command again")
        time.sleep(LOOK)


def _save_tokenizer(writer: StoreWriter, tokenizer: Any) -> None:
    with tempfile.TemporaryDirectory(prefix=".", suffix=".part", dir=writer.folder) as aside:
        try:
            with naming(Path(aside)):
                tokenizer.save_pretrained(aside)
        except OSError:
            raise
        except Exception as error:  # the library's own writing has no class for what goes wrong
            raise UserError(
                f"{writer.folder}: the tokeniser cannot be saved ({one_line(error, 120)}); the same command goes on"
            ) from None
        for path in sorted(Path(aside).rglob("*")):
            if path.is_file():
                writer.add(f"{TOKENIZER}/{path.relative_to(aside).as_posix()}", path)


def facts(manifest: Manifest, where: str) -> str:
    """A store in a few lines. The variance is per dimension."""
    total = sum(shard.bytes for shard in manifest.shards)
    lines = [
        f"{where}: {manifest.tokens:,} tokens, {manifest.sequences:,} sequences of {manifest.context}, "
        f"{size(total)} in {manifest.dtype}"
    ]
    for hook, record in manifest.hooks.items():
        left = ", ".join(f"{count:,} {reason}" for reason, count in record.excluded.items())
        lines.append(
            f"{hook}: width {record.width}, {record.kept:,} positions count"
            f"{f' (left out: {left})' if left else ''}, variance {record.variance:.4g}"
        )
        if clipped := manifest.made.get("clipped", {}).get(hook):
            lines.append(f"{hook}: {clipped:,} positions were not finite and are clipped")
    return "\n".join(lines)
