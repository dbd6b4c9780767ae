"""Where things lie, and writing them so that nothing half-written ever counts as whole."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hsae.errors import UserError, choices


def cache_root() -> Path:
    """The home of stores and runs: `$HSAE_CACHE`, else `cache/` in the working folder."""
    return Path(os.environ.get("HSAE_CACHE", "cache"))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file aside, flush it to disk, and rename it into place: readers see the old file or the new one.

    Yields:
        the path to write to. Nothing is left behind if the body raises.
    """
    aside = path.with_name(f".{path.name}.part")
    try:
        with naming(path):
            yield aside
            flush(aside)
            os.replace(aside, path)
            flush(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Have the disk hold what a file holds, or the names in a folder. A name lasts only when its folder is flushed."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put a file's name into the errors of writing and flushing it, which come without one."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def lasting_folder(folder: Path) -> None:
    """Make a folder that is not there, and those above it, so that they outlast a loss of power."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in new:
        with naming(path):
            flush(path.parent)


class Hold:
    """A folder that is held."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def share(self) -> None:
        """From now on let those in who ask for a share of it."""
        fcntl.flock(self._handle, fcntl.LOCK_SH)


@contextmanager
def alone(folder: Path, verb: str, shared: bool = False) -> Iterator[Hold]:
    """Hold a folder, made if it is not there, so that no second process writes into it. Ends with the process.

    Args:
        folder: what to hold.
        verb: who does, for the error line of others.
        shared: together with processes that share it.

    Raises:
        UserError: another process holds it.
    """
    lasting_folder(folder)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another {verb} is writing it; wait for that one, or stop it") from None
        yield Hold(handle)
    finally:
        os.close(handle)


def own(path: Path, folder: Path) -> Path:
    """A file in a folder that may be a stranger's, before it is opened: a plain file, and not one of another folder.

    Raises:
        FileNotFoundError: it is not there.
        UserError: it is a link out of the folder, or no file (a pipe would be waited for, a device never ends).
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise UserError(f"{path}: not a file")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{path}: a link that leaves its folder; put the file itself there")
    return path


def sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_url(name: str) -> bool:
    """Whether a name is a URL rather than a path or a name under the cache."""
    return re.match(r"[A-Za-z][\w+.-]*(::[^/]*)?://", name) is not None


def named_folder(name: str, kind: str, marker: str) -> Path:
    """The folder of a store or a run, by path, by name under the cache, or (empty name) the newest one.

    Args:
        name: a path, a name, the URL of a store (see `hsae.store.remote`), or "".
        kind: "activations" or "runs", the folder under the cache root.
        marker: the file whose presence makes the folder one of its kind; its time says which is newest.

    Raises:
        UserError: nothing there; the line says what is.
    """
    home = cache_root() / kind
    there = {f.parent.name: f for f in home.glob(f"*/{marker}")} if home.is_dir() else {}
    noun, verb = ("store", "hsae harvest") if kind == "activations" else ("run", "hsae train")
    if is_url(name):
        if kind != "activations":
            raise UserError(f"{name}: a {noun} must lie on this machine; only stores are read from a URL")
        from hsae.store.remote import mirror

        return mirror(name)
    if name:
        for folder in (Path(name), home / name):
            if folder.is_dir():
                return folder
        raise UserError(f"no {noun} {name!r} in {home}; {choices(name, there)}")
    if not there:
        raise UserError(f"no {noun} in {home} yet: make one with `{verb}`")
    # Data made for a test of the method is never what "the newest store" means, unless there is no other.
    harvested = {name: file for name, file in there.items() if not name.startswith("synthetic-")} or there
    return max(harvested.values(), key=lambda f: (f.stat().st_mtime_ns, f.parent.name)).parent
