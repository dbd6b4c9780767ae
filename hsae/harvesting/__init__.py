"""`hsae harvest`: a language model reads text, and the activations at hook points go into a store."""

from __future__ import annotations

import dataclasses
import shutil
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console

from hsae import config as configs
from hsae.errors import UserError
from hsae.files import cache_root
from hsae.harvesting.config import HarvestConfig
from hsae.harvesting.finish import facts
from hsae.harvesting.job import Job
from hsae.harvesting.ranks import Crew, crew
from hsae.harvesting.sources import text_of
from hsae.harvesting.text import Source
from hsae.loading import files_fingerprint, load_lm, local_path
from hsae.progress import say
from hsae.store import Manifest
from hsae.store.manifest import NAME
from hsae.store.place import Place
from hsae.store.remote import mirror
from hsae.store.upload import clear_up_at, upload_folder
from hsae.store.writer import clear_up
from hsae.terminal import Terminal

__all__ = ["HarvestConfig", "harvest"]


def harvest(config: HarvestConfig, console: Console | None = None, by: Crew | None = None) -> Path:
    """Make the store that a config describes, or finish one that was interrupted, or find it there already.

    Args:
        config: what to harvest.
        console: where to say so; the terminal by default.
        by: the processes that do it; all that torchrun started, by default.

    Returns:
        the store's folder, `activations/NAME` under the cache; or the mirror of the URL that it was harvested to.

    Raises:
        UserError: anything that the user can mend: no such model, hook point or text, too little disk, …
        KeyboardInterrupt: from the user. The whole shards stay, and the same config goes on from there.
    """
    with nullcontext(by) if by else crew() as ranks:
        # One of several processes speaks for all.
        return _harvest(config, Console(quiet=True) if ranks.rank else console or Terminal(), ranks)


def _harvest(config: HarvestConfig, console: Console, ranks: Crew) -> Path:
    place, config = Place(config.to) if config.to else None, dataclasses.replace(config, to="")
    folder = upload_folder(place) if place else cache_root() / "activations" / config.store_name
    # From here on rank 0 is first wherever something is downloaded or written, and a mistake is one line for all.
    with ranks.agreed():
        source = text_of(config)

    def found() -> Path | None:
        with ranks.agreed():
            there = mirror(place.url) if place and NAME in place.files() else folder
            manifest = _finished(there, config, source, place)
        if manifest is None:
            return None
        where = place.url if place else str(folder)
        say(console, f"{where}: already harvested")
        say(console, facts(manifest, where))
        return there

    if (there := found()) is not None:
        return there
    with ranks.agreed(), ranks.first() if local_path(config.model) is None else nullcontext():
        lm = load_lm(config.model, config.device, config.model_revision, config.tokenizer, config.trust_remote_code)
    with ranks.agreed():
        job = Job(config, lm, source, folder, console, ranks, place)
    if not job.run():
        return found() or folder
    if place is None:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    return mirror(place.url)


def _finished(folder: Path, config: HarvestConfig, source: Source, place: Place | None) -> Manifest | None:
    """The manifest of the folder's store, if that is the one that the config describes; None if there is no store.

    The folder is a mirror if the store lies at a place.

    Raises:
        UserError: there is another store.
    """
    if not (folder / NAME).exists():
        return None
    manifest = Manifest.read(folder)
    wanted = configs.table(config) | {"name": config.store_name}
    fields = {field.name for field in dataclasses.fields(config)} - {"device"}
    differ = [key for key in sorted(fields) if manifest.harvest.get(key) != wanted.get(key)]
    # A commit on the hub can only be had with a network; a finished store must be found without one.
    if "files" in manifest.text and manifest.text["files"] != source.record().get("files"):
        differ.append("the content of the data")
    if manifest.model.get("files") != files_fingerprint(config.model):
        differ.append("the files of the model")
    if differ:
        where, flag = (place.url, "--to") if place else (folder, "--name")
        raise UserError(f"{where}: holds a store made with other settings ({', '.join(differ)}); give another {flag}")
    clear_up(folder)
    if place:
        clear_up_at(place)
    return manifest
