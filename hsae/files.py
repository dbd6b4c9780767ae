"""Where things lie, and writing them so that nothing half-written ever counts as whole."""

from __future__ import annotations

import fcntl
import hashlib
import os
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
        yield aside
        with open(aside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def alone(folder: Path, verb: str) -> Iterator[None]:
    """Hold a folder, made if it is not there, so that no second process writes into it. Ends with the process.

    Raises:
        UserError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another {verb} is writing it; wait for that one, or stop it") from None
        yield
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def named_folder(name: str, kind: str, marker: str) -> Path:
    """The folder of a store or a run, by path, by name under the cache, or (empty name) the newest one.

    Args:
        name: a path, a name, or "".
        kind: "activations" or "runs", the folder under the cache root.
        marker: the file whose presence makes the folder one of its kind; its time says which is newest.

    Raises:
        UserError: nothing there; the line says what is.
    """
    home = cache_root() / kind
    there = {f.parent.name: f for f in home.glob(f"*/{marker}")} if home.is_dir() else {}
    noun, verb = ("store", "hsae harvest") if kind == "activations" else ("run", "hsae train")
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
