"""Writing a store behind a URL: each file is uploaded when it is whole, and shards then leave this machine's disk."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hsae.errors import UserError
from hsae.files import cache_root, replacing
from hsae.store.place import Place
from hsae.store.writer import JOURNAL, PLAN, Record, StoreWriter


def upload_folder(place: Place) -> Path:
    """Where a store's files lie until they are uploaded."""
    return cache_root() / "remote" / "uploads" / hashlib.sha256(place.url.encode()).hexdigest()[:16]


def clear_up_at(place: Place) -> None:
    """Remove the plan and the journal beside a manifest; a kill after it was uploaded leaves them there."""
    place.remove([f"{JOURNAL}/{name}" for name in place.files(JOURNAL)])
    if PLAN in place.files():
        place.remove([PLAN])


class UploadingWriter(StoreWriter):
    """Makes a store behind a URL, or goes on with one that this machine or another has begun.

    Args:
        folder: where files lie until they are uploaded, the journal and what lies beside the shards until the end.
        place: where the store is to be.
        plan: see `StoreWriter`.
        dtype: see there.

    Raises:
        UserError: see there; and nothing can be written to the place.
    """

    def __init__(self, folder: Path, place: Place, plan: Mapping[str, Any], dtype: str) -> None:
        self.place = place
        self._known: set[str] = set()
        (folder / JOURNAL).mkdir(parents=True, exist_ok=True)
        # What an earlier harvest left here says nothing of the one that is there now.
        for old in (folder / PLAN, *(folder / JOURNAL).iterdir()):
            old.unlink(missing_ok=True)
        for name, data in place.read([PLAN]).items():
            (folder / name).write_bytes(data)
        try:
            super().__init__(folder, plan, dtype)
        except UserError as error:
            raise UserError(str(error).replace(str(folder), place.url).replace("--name", "--to")) from None

    def whole_shards(self) -> dict[int, Record]:
        """The shards that are whole, with the entries that others have uploaded since."""
        entries = {name for name in self._there() if name.startswith(f"{JOURNAL}/")}
        for name, data in self.place.read(sorted(entries - self._known)).items():
            with replacing(self.folder / name) as aside:
                aside.write_bytes(data)
        self._known |= entries
        return super().whole_shards()

    def _there(self) -> dict[str, int]:
        entries = self.place.files(JOURNAL)
        return self.place.files() | {f"{JOURNAL}/{name}": size for name, size in entries.items()}

    def _put(self, name: str) -> None:
        self.place.put(self.folder / name, name)
        if name.endswith(".safetensors"):
            (self.folder / name).unlink()

    def _drop(self, name: str) -> None:
        self.place.remove([name])
        super()._drop(name)
