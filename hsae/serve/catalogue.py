"""What there is to look at: the runs and stores of the cache, whole or not. Read without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hsae.errors import UserError, one_line
from hsae.files import cache_root
from hsae.record import CONFIG, RESULT, Record
from hsae.store.manifest import Manifest

Standing = Literal["whole", "unfinished", "damaged"]


@dataclass(frozen=True)
class Listed:
    """A run of the cache.

    Attributes:
        name: its folder's name.
        standing: only a whole one can be looked at.
        note: why it is not whole, one line.
        changed: when its result was written, in seconds since 1970.
        record: what it says of itself; None where it is not whole.
    """

    name: str
    standing: Standing
    note: str
    changed: float
    record: Record | None


def runs() -> tuple[Listed, ...]:
    """The runs of the cache, the newest first; those that are not whole at the end."""
    home = cache_root() / "runs"
    found = [_listed(folder) for folder in _folders(home)]
    return tuple(sorted(found, key=lambda run: (run.record is None, -run.changed, run.name)))


def stores() -> dict[str, Manifest | str]:
    """The stores of the cache by name: the manifest, or one line that says why there is none."""
    found: dict[str, Manifest | str] = {}
    for folder in _folders(cache_root() / "activations"):
        try:
            found[folder.name] = Manifest.read(folder)
        except Exception as error:  # As for runs.
            found[folder.name] = one_line(error)
    return found


def run_folder(name: str) -> Path:
    """The folder of a run of the cache; no other folder has a name here.

    Raises:
        LookupError: there is none of that name.
    """
    return _named(name, cache_root() / "runs", "run")


def store_folder(name: str) -> Path:
    """As `run_folder`, for a store."""
    return _named(name, cache_root() / "activations", "store")


def stamp(*files: Path) -> tuple[tuple[int, int], ...]:
    """Changes when a file is written anew; (0, 0) for one that is not there."""
    stamps = []
    for file in files:
        try:
            stat = file.stat()
        except OSError:
            stamps.append((0, 0))
        else:
            stamps.append((stat.st_mtime_ns, stat.st_size))
    return tuple(stamps)


def _named(name: str, home: Path, noun: str) -> Path:
    if name not in {folder.name for folder in _folders(home)}:
        raise LookupError(f"no {noun} {name!r} in {home}")
    return home / name


def _folders(home: Path) -> list[Path]:
    try:
        return sorted(path for path in home.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return []


def _listed(folder: Path) -> Listed:
    try:
        record = Record(folder)
        if not record.result.rows:
            raise UserError(f"{folder / RESULT}: names no SAE")
    except Exception as error:  # Whatever is wrong with one of them, the others are listed.
        unfinished = (folder / CONFIG).exists() and not (folder / RESULT).exists()
        standing: Standing = "unfinished" if unfinished else "damaged"
        return Listed(folder.name, standing, one_line(error), _changed(folder), None)
    return Listed(folder.name, "whole", "", _changed(folder / RESULT), record)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
