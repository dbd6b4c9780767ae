"""`hsae harvest`: a language model reads text, and the activations at hook points go into a store."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from hsae import config as configs
from hsae.errors import UserError
from hsae.files import cache_root
from hsae.harvesting.config import HarvestConfig
from hsae.harvesting.job import Job, facts
from hsae.harvesting.sources import open_source
from hsae.harvesting.text import Source
from hsae.loading import files_fingerprint, load_lm
from hsae.progress import say
from hsae.store import Manifest
from hsae.store.manifest import NAME
from hsae.store.writer import JOURNAL, PLAN

__all__ = ["HarvestConfig", "harvest"]


def harvest(config: HarvestConfig, console: Console | None = None) -> Path:
    """Make the store that a config describes, or finish one that was interrupted, or find it there already.

    Args:
        config: what to harvest.
        console: where to say so; the terminal by default.

    Returns:
        the store's folder, `activations/NAME` under the cache.

    Raises:
        UserError: anything that the user can mend: no such model, hook point or text, too little disk, …
        KeyboardInterrupt: from the user. The whole shards stay, and the same config goes on from there.
    """
    console = console or Console()
    folder = cache_root() / "activations" / config.store_name
    source = open_source(
        config.data,
        split=config.split,
        column=config.column,
        revision=config.data_revision,
        separator=config.document_separator,
    )
    found = _finished(folder, config, source)
    if found is not None:
        say(console, f"{folder}: already harvested")
        say(console, facts(found, folder))
        return folder
    lm = load_lm(config.model, config.device, config.model_revision, config.tokenizer, config.trust_remote_code)
    return Job(config, lm, source, folder, console).run()


def _finished(folder: Path, config: HarvestConfig, source: Source) -> Manifest | None:
    """The manifest of the folder's store, if that is the one that the config describes; None if there is no store.

    Raises:
        UserError: there is another store.
    """
    if not (folder / NAME).exists():
        return None
    manifest = Manifest.read(folder)
    wanted = configs.table(config) | {"name": config.store_name}
    differ = [key for key, value in wanted.items() if key != "device" and manifest.harvest.get(key) != value]
    # A commit on the hub can only be had with a network; a finished store must be found without one.
    if "files" in manifest.text and manifest.text["files"] != source.record().get("files"):
        differ.append("the content of the data")
    if manifest.model.get("files") != files_fingerprint(config.model):
        differ.append("the files of the model")
    if differ:
        raise UserError(f"{folder}: holds a store made with other settings ({', '.join(differ)}); give another --name")
    # Left behind by a kill after the manifest was written.
    for name in (JOURNAL, PLAN):
        (folder / name).unlink(missing_ok=True)
    return manifest
