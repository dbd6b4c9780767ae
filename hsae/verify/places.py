"""What a word names: one store or run, or all that lie in a folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hsae.errors import UserError, choices
from hsae.files import cache_root
from hsae.record import CHECKPOINT, CONFIG, METRICS, RESULT
from hsae.store.manifest import NAME

PLAN, JOURNAL = "plan.json", "journal"
KINDS = {"store": "activations", "run": "runs"}
# Folders under the cache that hold copies for the way from or to another place.
COPIES = ("remote", "pulls", "pushes")


@dataclass(frozen=True)
class Place:
    """A folder with a store or a run in it, finished or not. `folder` is a URL for a store that lies elsewhere."""

    kind: str
    folder: Path | str

    @property
    def name(self) -> str:
        """As the user knows it: the name, where the cache has it."""
        folder = Path(self.folder)
        elsewhere = isinstance(self.folder, str) or folder.parent != cache_root() / KINDS[self.kind]
        return str(self.folder) if elsewhere else folder.name


def kind_of(folder: Path) -> str:
    """A store's or a run's, by the files in it; empty for a folder that is neither."""
    if any((folder / name).exists() for name in (NAME, PLAN)) or any(folder.glob("0000*.safetensors")):
        return "store"
    begun = (folder / CONFIG).exists() and (
        folder.parent.name == KINDS["run"] or any((folder / name).exists() for name in (CHECKPOINT, METRICS))
    )
    return "run" if begun or (folder / RESULT).exists() else ""


def places(words: tuple[str, ...]) -> list[Place]:
    """Everything that the words name; with no words everything under the cache.

    Raises:
        UserError: a word names nothing, or a folder without stores and runs.
    """
    found: dict[str, Place] = {}
    for word in words or (str(cache_root()),):
        here = list(_named(word))
        if not here:
            raise UserError(f"{word}: no store and no run there")
        found |= {str(place.folder): place for place in here}
    return list(found.values())


def one_place(word: str) -> Place:
    """The one store or run that a word names.

    Raises:
        UserError: it names none, or several.
    """
    found = places((word,))
    if len(found) > 1:
        named = ", ".join(str(place.folder) for place in found[:5])
        raise UserError(f"{word}: names several stores and runs ({named}); name one")
    return found[0]


def _named(word: str) -> Iterator[Place]:
    if re.match(r"\w+://", word):
        yield Place("store", word)
        return
    homes = {kind: cache_root() / folder for kind, folder in KINDS.items()}
    if Path(word).is_dir():
        yield from _in(Path(word))
        return
    here = [Place(kind, home / word) for kind, home in homes.items() if (home / word).is_dir()]
    if not here:
        there = {path.name for home in homes.values() if home.is_dir() for path in home.iterdir() if path.is_dir()}
        raise UserError(f"no store or run {word!r} in {cache_root()}; {choices(word, there)}")
    yield from here


def _in(folder: Path) -> Iterator[Place]:
    if kind := kind_of(folder):
        yield Place(kind, folder)
        return
    copies = [cache_root() / name for name in COPIES]
    for inner in sorted(folder.iterdir()):
        # Not through links: they may lead round in circles.
        if inner.is_dir() and not inner.is_symlink() and not inner.name.startswith(".") and inner not in copies:
            yield from _in(inner)
