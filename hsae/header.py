"""The header of a safetensors file, held against the file before anything is allocated by what it says."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

LONGEST = 100_000_000
"""bytes of a header; safetensors itself refuses longer ones"""
SIZES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
"""bytes of a number"""


class BadHeader(ValueError):
    """The header contradicts itself or the file; the message says how."""


@dataclass(frozen=True)
class Entry:
    """One tensor: the type of its numbers, its shape, and where its bytes begin and end in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself. `raw`: its bytes, the 8 of its length included."""

    raw: bytes
    metadata: dict[str, str]
    tensors: dict[str, Entry]


def length(first: bytes, size: int) -> int:
    """Bytes of the header behind the first 8 of a file of `size` bytes.

    Raises:
        BadHeader: they are not in the file, or far too many.
    """
    count = int.from_bytes(first, "little") if len(first) == 8 else size
    if count > min(LONGEST, size - 8):
        raise BadHeader("its header is longer than the file")
    return count


def read(file: BinaryIO) -> Header:
    """The header of an open file, which is left at the first byte behind it.

    Raises:
        BadHeader: see there.
    """
    size = os.fstat(file.fileno()).st_size
    first = file.read(8)
    return parse(first + file.read(length(first, size)), size)


def parse(raw: bytes, size: int) -> Header:
    """A header from its bytes. The tensors must fill the file of `size` bytes exactly, one behind the other.

    Raises:
        BadHeader: they do not, or it is no header at all.
    """
    try:
        table = json.loads(raw[8:].decode())
    except (ValueError, RecursionError):
        raise BadHeader("its header is not JSON") from None
    if not isinstance(table, dict):
        raise BadHeader("its header is not a table")
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise BadHeader("its header's metadata is not text")
    tensors = {name: _entry(name, entry, len(raw)) for name, entry in table.items()}
    end = len(raw)
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != end:
            raise BadHeader(f"its tensor {name!r} does not begin where the one before ends")
        end = entry.end
    if end != size:
        raise BadHeader(f"its header tells of {end} bytes, it has {size}")
    return Header(raw, metadata, tensors)


def _entry(name: str, entry: Any, start: int) -> Entry:
    wrong = BadHeader(f"its tensor {name!r} contradicts itself")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise wrong
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not (isinstance(dtype, str) and dtype in SIZES and _counts(shape) and _counts(offsets) and len(offsets) == 2):
        raise wrong
    if offsets[1] - offsets[0] != math.prod(shape) * SIZES[dtype]:
        raise wrong
    return Entry(dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _counts(values: Any) -> bool:
    # Not isinstance: true is no number here.
    return isinstance(values, Sequence) and all(type(value) is int and value >= 0 for value in values)
