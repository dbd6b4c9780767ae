"""Files of a bounded total size in a folder that several processes share: those used least recently go first.

Every file that is being read is held by a shared lock, and every one that is being made by an exclusive one; the system
takes both back when a process dies, so that nothing is held for ever. A file that is being made lies aside, under a
name that says how large it will be, and is renamed when it is whole.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

ASIDE = ".part"


class Cache:
    """Whole files by name, at most so many bytes of them, and always room for those in use.

    Args:
        folder: where they lie; made when first needed.
        most: bytes of all files together. What is in use has room even where it is more than that.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self.folder, self.most = folder, most

    def hold(self, name: str) -> int | None:
        """A handle that keeps a file from going until it is closed; None if the file is not there."""
        path = self.folder / name
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        fcntl.flock(handle, fcntl.LOCK_SH)
        if _same(handle, path):
            os.utime(path)
            return handle
        os.close(handle)
        return None

    def make(self, name: str, size: int, fetch: Callable[[Path], None]) -> int:
        """Make a file, or wait for who is making it, and hold it.

        Args:
            name: the file's.
            size: its bytes.
            fetch: writes the whole file to the path that it is given, or raises.

        Returns:
            a handle as `hold` gives it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path, aside = self.folder / name, self.folder / f".{name}.{size}{ASIDE}"
        while True:
            # Who waited for the lock finds the file made, or the one aside gone.
            if (handle := self.hold(name)) is not None:
                return handle
            handle = os.open(aside, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                if not _same(handle, aside):
                    os.close(handle)
                    continue
                self._make_room()
                fetch(aside)
                os.replace(aside, path)
                fcntl.flock(handle, fcntl.LOCK_SH)
                if _same(handle, path):
                    return handle
                os.close(handle)
            except BaseException:
                aside.unlink(missing_ok=True)
                os.close(handle)
                raise

    def drop(self, name: str) -> None:
        """Delete a file; whoever reads it reads on."""
        (self.folder / name).unlink(missing_ok=True)

    def _make_room(self) -> None:
        """Delete files, those used longest ago first, until all together are at most what is allowed."""
        there = []
        for entry in os.scandir(self.folder):
            try:
                found = entry.stat()
            except FileNotFoundError:
                continue
            parts = entry.name.removesuffix(ASIDE).rpartition(".")
            promised = int(parts[2]) if entry.name.endswith(ASIDE) and parts[2].isdigit() else 0
            there.append((found.st_mtime_ns, entry.path, max(found.st_size, promised)))
        total = sum(size for _, _, size in there)
        for _, path, size in sorted(there):
            if total <= self.most:
                return
            if _delete(path):
                total -= size


def _delete(path: str) -> bool:
    """Delete a file that nobody holds; whether that was so."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Under this name another file may be in the making by now; this one cannot be renamed while it is locked.
        if found := _same(handle, path):
            os.unlink(path)
        return found
    except BlockingIOError:
        return False
    finally:
        os.close(handle)


def _same(handle: int, path: str | Path) -> bool:
    """Whether a path leads to an open file."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False
