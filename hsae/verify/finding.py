"""What was found of one store or run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hsae.errors import UserError
from hsae.verify.places import Place

UNSEALED = "not sealed"
Advance = Callable[[int], None]
"""told how many bytes have been read since the last call"""


@dataclass
class Finding:
    """One store or run.

    Attributes:
        place: which.
        size: bytes of its files.
        note: what it is, in a few words.
        unfinished: it was cut off; that is no damage.
        damages: a line for each damage, with the file and what to do.
        shards: the indexes of a store's damaged shards.
        files: other damaged files.
    """

    place: Place
    size: int = 0
    note: str = ""
    unfinished: bool = False
    damages: dict[str, None] = field(default_factory=dict)
    shards: list[int] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    @property
    def state(self) -> str:
        """One word."""
        return "damaged" if self.damages else "unfinished" if self.unfinished else "sound"

    def holds(self, check: Callable[[], Any], file: Path | None = None) -> bool:
        """Whether a check passes; if not, its line is a damage, and `file` is among the files that have one."""
        try:
            check()
        except UserError as error:
            self.damages[str(error)] = None
            if file is not None and file not in self.files:
                self.files.append(file)
            return False
        return True


def bytes_in(folder: Path) -> int:
    """Of all files in a folder and below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
