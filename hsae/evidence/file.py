"""An index's file: safetensors, with a checksum of every block, so that one latent is checked without reading all.

The header's metadata holds the facts, the blocks' checksums, and the seal of the header itself (`hsae.seal`).
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Shaped

from hsae.errors import UserError, one_line
from hsae.files import own, replacing
from hsae.header import read as read_header
from hsae.seal import EMPTY, FIELD, holds, sealed

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 1 << 16
"""bytes with one checksum"""
BLOCKS = "blocks"
TYPES = {"F64": "f8", "F32": "f4", "I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1", "U8": "u1", "BOOL": "?"}


def write(path: Path, arrays: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
    """Write arrays and facts, aside and renamed."""
    from safetensors.torch import save

    raw = memoryview(save(dict(arrays)))
    start = 8 + int.from_bytes(raw[:8], "little")
    table = {"__metadata__": {FIELD: EMPTY, BLOCKS: _sums(raw[start:]), **facts}, **json.loads(bytes(raw[8:start]))}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as aside, open(aside, "wb") as file:
        file.writelines(sealed(len(text).to_bytes(8, "little") + text))
        file.write(raw[start:])


def _sums(data: memoryview) -> str:
    return "".join(_sum(data[a : a + BLOCK]) for a in range(0, len(data), BLOCK))


def _sum(block: memoryview) -> str:
    return hashlib.blake2b(block, digest_size=8).hexdigest()


class Arrays:
    """The arrays of a file that `write` wrote; or, unchecked, of one that came before there were checksums.

    Args:
        path: the file.

    Attributes:
        facts: what was written with them.
        checked: it has checksums.

    Raises:
        UserError: missing, damaged, or no file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(own(path, path.parent), "rb") as file:
                header = read_header(file)
                self._bytes = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as error:
            raise self._damaged(one_line(error)) from None
        self._entries, self._start = header.tensors, len(header.raw)
        self.facts = dict(header.metadata)
        seal, self._sums = self.facts.pop(FIELD, None), self.facts.pop(BLOCKS, "")
        self.checked = seal is not None
        blocks = math.ceil((len(self._bytes) - self._start) / BLOCK)
        if self.checked and not (holds(header.raw, seal) and len(self._sums) == 16 * blocks):
            raise self._damaged("its header is not the one that was sealed")
        self._seen: set[int] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def form(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Of an array that is there: i for integers, f for floats (empty: neither), and its shape."""
        entry = self._entries[name]
        return np.dtype(TYPES.get(entry.dtype, "S")).kind.replace("S", ""), entry.shape

    def array(self, name: str, first: int = 0, last: int | None = None) -> Shaped[np.ndarray, "..."]:
        """The rows `[first, last)` of an array, all by default. What they are read from is checked once.

        Raises:
            UserError: it is damaged, or not there.
        """
        entry = self._entries.get(name)
        if entry is None or entry.dtype not in TYPES or not entry.shape:
            raise self._damaged(f"it has no array {name}")
        rows, row = entry.shape[0], entry.shape[1:]
        last = rows if last is None else last
        if not 0 <= first <= last <= rows:
            raise self._damaged(f"{name} has no rows {first} to {last}")
        each = (entry.end - entry.begin) // max(rows, 1)
        begin, end = entry.begin + first * each, entry.begin + last * each
        self._check(begin, end)
        return np.frombuffer(self._bytes[begin:end], TYPES[entry.dtype]).reshape(last - first, *row)

    def check(self) -> None:
        """Read everything.

        Raises:
            UserError: some of it is damaged.
        """
        self._check(self._start, len(self._bytes))

    def _check(self, begin: int, end: int) -> None:
        if not self.checked or begin == end:
            return
        for block in range((begin - self._start) // BLOCK, (end - 1 - self._start) // BLOCK + 1):
            if block in self._seen:
                continue
            place = self._start + block * BLOCK
            if _sum(self._bytes[place : place + BLOCK]) != self._sums[16 * block : 16 * block + 16]:
                raise self._damaged("its checksum is not its own")
            self._seen.add(block)

    def _damaged(self, what: str) -> UserError:
        return UserError(f"{self.path}: damaged or unreadable ({what}); delete it, and it is made anew")
