"""`hsae repair`: what is damaged is made again from what the store or the run says of itself, and then verified."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from pathlib import Path

from rich.console import Console

from hsae import origin
from hsae.errors import UserError
from hsae.files import alone
from hsae.harvesting.again import again
from hsae.progress import Bar, say
from hsae.record import CHECKPOINT, CONFIG, RESULT, WEIGHTS
from hsae.store import Store
from hsae.store.tokenizer import FOLDER
from hsae.verify import RepairConfig
from hsae.verify.finding import Finding, bytes_in
from hsae.verify.places import Place, one_place
from hsae.verify.report import examine, show
from hsae.verify.runs import EVIDENCE


def repair(settings: RepairConfig, console: Console | None = None) -> int:
    """See `hsae.verify.repair`."""
    console = console or Console()
    if not settings.path:
        raise UserError("hsae repair needs a store or a run: hsae repair NAME")
    place = one_place(settings.path)
    if isinstance(place.folder, str):
        raise UserError(f"{place.folder}: a store elsewhere cannot be repaired from here; harvest it again")
    found = _look(place, console)
    if not found.damages:
        show([found], console)
        return 0
    if place.kind == "run":
        _mend_run(place.folder, found, console)
    elif found.unfinished:
        say(console, f"{place.folder}: unfinished; give its `hsae harvest` command again, it makes damaged shards anew")
    else:
        _mend_store(place.folder, found, settings.trust_remote_code, console)
    found = _look(place, console)
    show([found], console)
    return 1 if found.damages else 0


def _look(place: Place, console: Console) -> Finding:
    with Bar(console, "verify", bytes_in(Path(place.folder)), unit="bytes") as bar:
        return examine(place, bar.advance)


# ---- stores


def _mend_store(folder: Path, found: Finding, trust: bool, console: Console) -> None:
    try:
        store = Store(folder)
    except UserError:
        # Without it nobody knows what the shards should hold.
        say(console, f"{folder}: without its manifest a store cannot be mended; delete the folder and harvest again")
        return
    try:
        if found.shards:
            _mend_shards(store, found.shards, trust, console)
        if any(path.relative_to(folder).parts[0] == FOLDER for path in found.files):
            with alone(folder, "hsae repair"):
                _mend_tokenizer(store, trust, console)
    except UserError as error:
        say(console, str(error))


def _mend_shards(store: Store, shards: list[int], trust: bool, console: Console) -> None:
    """Harvest them again; `again` says of each that comes out with other bytes why."""
    for path in (store.folder / store.manifest.shards[index].file for index in shards):
        if path.is_dir() and not path.is_symlink():
            path.rmdir()  # nothing can be renamed into its place; with files in it, it stays
    # A stranger's manifest does not decide whose code runs here.
    harvest = store.manifest.harvest | {"trust_remote_code": trust}
    mended = again(store.folder, dataclasses.replace(store.manifest, harvest=harvest), shards, console)
    if mended:
        names = ", ".join(store.manifest.shards[index].file for index in mended)
        say(console, f"harvested again, with the bytes of before: {names}")


def _mend_tokenizer(store: Store, trust: bool, console: Console) -> None:
    """Take the files of the model's tokeniser that have the checksums of before."""
    lm = origin.load(store, trust_remote_code=trust)
    with tempfile.TemporaryDirectory(dir=store.folder, prefix=".") as aside:
        lm.tokenizer.save_pretrained(Path(aside) / FOLDER)
        for name, checksum in store.manifest.files.items():
            fresh, path = Path(aside) / name, store.folder / name
            try:
                store.beside(name)
            except UserError:
                try:
                    checksum.check(fresh, Path(aside), "the manifest", "")
                except UserError:
                    say(console, f"{path}: the model's tokeniser is another one now, so it cannot be mended")
                    continue
                if path.is_dir() and not path.is_symlink():
                    path.rmdir()
                path.parent.mkdir(exist_ok=True)
                os.replace(fresh, path)
                say(console, f"{path}: written again")


# ---- runs


def _mend_run(folder: Path, found: Finding, console: Console) -> None:
    """Delete what is made anew when it is missed; say how to get the rest again."""
    finished = (folder / RESULT).exists()
    with alone(folder, "hsae repair"):
        for path in found.files:
            if path.parent.name == EVIDENCE or (path.name == CHECKPOINT and finished):
                path.unlink()
                say(console, f"{path}: deleted; {'it is made anew when it is needed' if finished else ''}".rstrip("; "))
    left = {path.name for path in found.files if path.exists() or path.name in (WEIGHTS, CONFIG)}
    left -= {path.name for path in found.files if path.parent.name == EVIDENCE}
    if not left:
        return
    if CONFIG in left or RESULT in left:
        again = "give its `hsae train` command again with another --name"
    elif finished:
        again = f"`hsae train {folder / CONFIG} --name {folder.name}-again` trains it again"
    else:
        again = f"delete {folder / CHECKPOINT}, and `hsae train {folder / CONFIG}` trains it from the start"
    say(console, f"{', '.join(sorted(left))}: cannot be mended; restore from a copy, or {again}")
