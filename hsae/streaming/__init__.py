"""`hsae train --stream`: a language model reads text, and its activations are trained on without being stored."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

from rich.console import Console

from hsae.errors import UserError
from hsae.harvesting import harvest
from hsae.harvesting.job import packing_for
from hsae.harvesting.packing import Cursor
from hsae.harvesting.ranks import Crew
from hsae.harvesting.sources import text_of
from hsae.loading import load_lm
from hsae.store import Store
from hsae.streaming.config import StreamConfig
from hsae.streaming.pools import Pools
from hsae.streaming.rows import StreamRows

__all__ = ["StreamConfig", "StreamRows", "make_sample", "open_stream"]


def make_sample(config: StreamConfig, console: Console | None) -> Path:
    """The store of a text's beginning, harvested if it is not there; this process does it alone.

    Raises:
        UserError: as `harvest`.
    """
    return harvest(config.of_sample, console or Console(quiet=True), Crew())


def open_stream(config: StreamConfig, sample: Store, seed: int, say: Callable[[str], None]) -> StreamRows:
    """The shuffled rows of the text after its sample.

    Args:
        config: what is read, and how.
        sample: the store of the text's beginning.
        seed: of the order.
        say: shows the user a line.

    Raises:
        UserError: the text ends with the sample, or as `load_lm`.
    """
    source = text_of(config)
    lm = load_lm(config.model, config.device, config.model_revision, config.tokenizer, config.trust_remote_code)
    packing, last = packing_for(config, lm), sample.manifest.shards[-1]
    begun = packing.rows(source, lm.tokenizer, Cursor(**(last.cursor or {})))
    *_, end = islice(begun, last.sequences)
    if next(begun, None) is None:
        raise UserError(f"{', '.join(config.data)}: the text ends with the sample; lower --stream.sample, or add text")
    return StreamRows(Pools(config, lm, source, packing, end.cursor, seed, say))
