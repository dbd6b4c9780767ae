"""What there is to look at: the runs and stores of the cache, whole or not. Read without PyTorch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hsae.errors import UserError, one_line
from hsae.files import cache_root, named_folder
from hsae.record import CONFIG, RESULT, Record
from hsae.serve.kept import Kept
from hsae.serve.told import NotHere
from hsae.store.manifest import NAME as MANIFEST
from hsae.store.manifest import Manifest

Standing = Literal["whole", "unfinished", "damaged"]
MOST = 512
"""runs, and stores, whose facts are kept"""


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


class Catalogue:
    """The runs and stores of the cache. What was read is kept until its file changes.

    Only what lies in the cache is served: a link that leads out of it, in the place of a run or store or within one, is
    not followed, whoever put it there.
    """

    def __init__(self) -> None:
        self._records: Kept[Record] = Kept(MOST)
        self._manifests: Kept[Manifest] = Kept(MOST)

    def runs(self) -> tuple[Listed, ...]:
        """The runs of the cache, the newest first; those that are not whole at the end."""
        found = [self._listed(folder) for folder in _folders(_home("runs"))]
        return tuple(sorted(found, key=lambda run: (run.record is None, -run.changed, run.name)))

    def stores(self) -> dict[str, Manifest | str]:
        """The stores of the cache by name: the manifest, or one line that says why there is none."""
        found: dict[str, Manifest | str] = {}
        for folder in _folders(_home("activations")):
            try:
                found[folder.name] = self.manifest(folder.name)
            except Exception as error:  # As for runs.
                found[folder.name] = one_line(error)
        return found

    def run_folder(self, name: str) -> Path:
        """The folder of a run of the cache; no other folder has a name here.

        Raises:
            NotHere: there is none of that name.
        """
        return _named(name, _home("runs"), "run")

    def store_folder(self, name: str) -> Path:
        """As `run_folder`, for a store."""
        return _named(name, _home("activations"), "store")

    def record(self, name: str) -> Record:
        """A run of the cache.

        Raises:
            NotHere: there is none of that name.
            UserError: it is not whole, or a link in it leaves the cache.
        """
        folder = self.run_folder(name)

        def make() -> Record:
            _stay(folder)
            return Record(folder)

        return self._records.get((folder, stamp(folder / RESULT, folder / CONFIG)), make)

    def manifest(self, name: str) -> Manifest:
        """As `record`, for a store."""
        folder = self.store_folder(name)

        def make() -> Manifest:
            _stay(folder)
            return Manifest.read(folder)

        return self._manifests.get((folder, stamp(folder / MANIFEST)), make)

    def trained_on(self, record: Record) -> Path:
        """The folder of the store that a run was trained on.

        Raises:
            UserError: it is not there, or not in the cache.
        """
        home, about = _home("activations"), f"run {record.name} was trained on a store that cannot be opened"
        try:
            folder = named_folder(record.result.store, "activations", MANIFEST)
        except UserError as error:
            raise UserError(f"{about}: {error}") from None
        if folder.resolve().parent != home.resolve():
            raise UserError(f"{about}: {record.result.store} is outside the cache; choose one of the cache's")
        return folder

    def _listed(self, folder: Path) -> Listed:
        try:
            record = self.record(folder.name)
            if not record.result.rows:
                raise UserError(f"{folder / RESULT}: names no SAE")
        except Exception as error:  # Whatever is wrong with one of them, the others are listed.
            unfinished = (folder / CONFIG).exists() and not (folder / RESULT).exists()
            standing: Standing = "unfinished" if unfinished else "damaged"
            return Listed(folder.name, standing, one_line(error), _changed(folder), None)
        return Listed(folder.name, "whole", "", _changed(folder / RESULT), record)


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


def _home(kind: str) -> Path:
    return cache_root() / kind


def _named(name: str, home: Path, noun: str) -> Path:
    # Compared with what is there, and never joined to a path before: so no name leads anywhere else.
    if name not in _names(home) or not (home / name).is_dir():
        raise NotHere(f"there is no {noun} {name!r}")
    return home / name


def _folders(home: Path) -> list[Path]:
    return [home / name for name in sorted(_names(home)) if (home / name).is_dir()]


def _names(home: Path) -> list[str]:
    try:
        return [name for name in os.listdir(home) if not name.startswith(".")]
    except OSError:
        return []


def _stay(folder: Path) -> None:
    """Refuse a folder that is a link out of the cache, or holds one."""
    home = folder.parent.resolve()
    inside = (os.path.join(place, name) for place, *names in os.walk(folder) for name in (*names[0], *names[1]))
    for path in (str(folder), *inside):
        if os.path.islink(path) and not Path(path).resolve().is_relative_to(home):
            raise UserError(f"{path}: a link that leaves the cache; it is not followed here")


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
