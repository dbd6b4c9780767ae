"""`hsae pull`: a run's files from the hub, into a folder aside; checked there, and only then renamed into the cache."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from hsae.errors import UserError
from hsae.figures import size
from hsae.files import alone, cache_root, sha256
from hsae.progress import say
from hsae.record import CONFIG, RESULT, WEIGHTS
from hsae.sharing import NAME, PullConfig
from hsae.sharing.contents import NEEDED, OPTIONAL
from hsae.sharing.hub import TIMEOUT, asking
from hsae.terminal import Terminal

if TYPE_CHECKING:
    from hsae.run import Run

# The whole of a table of a run, or of its config, is far below this; only weights and metrics may be large.
MOST_BYTES = 16 << 20


@dataclass(frozen=True)
class Remote:
    """A file on the hub: its size, and what its bytes must hash to (sha256 of a large file, git's id of another)."""

    bytes: int
    sha256: str | None
    blob: str | None

    def is_at(self, path: Path) -> bool:
        """Whether the file here has the same bytes."""
        if not path.is_file() or path.stat().st_size != self.bytes:
            return False
        if self.sha256:
            return sha256(path) == self.sha256
        digest = hashlib.sha1(b"blob %d\0" % self.bytes, usedforsecurity=False)
        digest.update(path.read_bytes())
        return digest.hexdigest() == self.blob


def pull(settings: PullConfig, console: Console | None = None) -> None:
    """See `hsae.sharing.pull`."""
    console = console or Terminal()
    if not settings.repository:
        raise UserError("hsae pull needs a repository: hsae pull OWNER/NAME")
    name = settings.name or settings.repository.partition("/")[2]
    if not NAME.fullmatch(name):
        raise UserError(f"{settings.repository}: its name cannot be a run's here; give another with --name")
    commit, files = _look(settings)
    folder = cache_root() / "runs" / name
    if folder.exists():
        if not files[WEIGHTS].is_at(folder / WEIGHTS):
            raise UserError(f"{folder}: is there already, and is not that run; give another --name, or delete it")
        say(console, f"{folder}: is here already")
    else:
        aside = cache_root() / "pulls" / name
        with alone(aside, "hsae pull"):
            total = size(sum(file.bytes for file in files.values()))
            say(console, f"{settings.repository} at {commit[:8]}: {len(files)} files, {total}")
            _download(settings.repository, commit, files, aside)
            _check(aside, settings.repository)
            folder.parent.mkdir(parents=True, exist_ok=True)
            os.rename(aside, folder)
    _tell(folder, console)


def _look(settings: PullConfig) -> tuple[str, dict[str, Remote]]:
    """The commit that is meant, and the files of a run that it has; any other file is left where it is."""
    from huggingface_hub import HfApi

    repository = settings.repository
    with asking(repository, settings.revision):
        info = HfApi().model_info(repository, revision=settings.revision or None, files_metadata=True, timeout=TIMEOUT)
    there = {file.rfilename: file for file in info.siblings or ()}
    if lacking := [name for name in NEEDED if name not in there]:
        raise UserError(f"{repository}: no run of hsae (it has no {', '.join(lacking)})")
    files = {name: _remote(there[name]) for name in (*NEEDED, *OPTIONAL) if name in there}
    for name in (CONFIG, RESULT):
        if files[name].bytes > MOST_BYTES:
            raise UserError(f"{repository}: no run of hsae ({name} has {size(files[name].bytes)})")
    return str(info.sha), files


def _remote(file: Any) -> Remote:
    return Remote(int(file.size or 0), file.lfs.sha256 if file.lfs else None, file.blob_id)


def _download(repository: str, commit: str, files: dict[str, Remote], aside: Path) -> None:
    """The files into a folder that holds nothing else afterwards. What an earlier attempt has loaded is kept."""
    from huggingface_hub import hf_hub_download

    for name, remote in files.items():
        with asking(repository, commit):
            hf_hub_download(repository, name, revision=commit, local_dir=aside)
        if not remote.is_at(aside / name):
            (aside / name).unlink(missing_ok=True)
            raise UserError(f"{repository}: {name} did not arrive as the hub has it; give the same command again")
    for path in aside.iterdir():
        if path.is_dir():
            shutil.rmtree(path)  # where the hub's client keeps what it has half loaded
        elif path.name not in files:
            path.unlink()


def _check(folder: Path, repository: str) -> None:
    """Read the run as every verb will.

    Raises:
        UserError: it is not whole, or contradicts itself.
    """
    from hsae.run import Run

    try:
        run = Run(folder)
        _harmless(run)
        for row in run.result.rows:
            if not row.diverged:
                _fits(run, row.setup, row.seed)
    except (UserError, ValueError) as error:
        raise UserError(f"{repository}: what it holds is no whole run: {error}") from None


def _harmless(run: Run) -> None:
    """Refuse what would lead a later command out of the cache, or have it run a stranger's code."""
    from hsae import config
    from hsae.errors import visible
    from hsae.harvesting.config import HarvestConfig

    path = run.folder / CONFIG
    names = [*run.tables, *(row.setup for row in run.result.rows), config.read_file(path, "train").get("name", "")]
    for name in map(str, names):
        if name != visible(name) or name in (".", "..") or re.search(r"[/\\]", name):
            raise UserError(f"{name!r} cannot be the name of a setup or a run")
    if config.build(HarvestConfig, config.read_file(path, "harvest"), CONFIG, "harvest").trust_remote_code:
        raise UserError(f"{CONFIG} switches harvest.trust_remote_code on, and would run code that others wrote")


def _fits(run: Run, setup: str, seed: int) -> None:
    sae, shape = run.sae(setup, seed), (run.result.latents, run.result.width)
    if tuple(sae.W_enc.shape) != shape or tuple(sae.W_dec.shape) != shape:
        raise UserError(f"{setup}, seed {seed}: weights of {tuple(sae.W_enc.shape)}, where {shape} are told")


def _tell(folder: Path, console: Console) -> None:
    """What is here now, and what to do with it."""
    from hsae import config
    from hsae.errors import visible
    from hsae.run import Run
    from hsae.store import Manifest

    run = Run(folder)
    result = run.result
    model = visible(str(result.model.get("name", "")))
    many = f"{len(result.rows)} SAE{'' if len(result.rows) == 1 else 's'} of {result.latents:,} latents"
    say(console, f"{folder}: {many} on {visible(result.hook)} of {model}")
    store = cache_root() / "activations" / Path(result.store).name
    try:
        here = Manifest.read(store).fingerprint == result.store_fingerprint
    except UserError:
        here = False
    look = f"hsae inspect --run {folder.name}"
    if here:
        say(console, f"next: {look}")
    elif config.read_file(folder / CONFIG, "harvest"):
        say(console, f"next: hsae harvest {folder / CONFIG} (makes the store it was trained on), then {look}")
    else:
        say(console, f"next: {look} --on STORE, a store of the same model and hook point")
