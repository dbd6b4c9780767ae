"""A shard's rows, read straight into memory that is there already and hashed on the way: one pass over the file."""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hsae.store.manifest import keep_key

# Bytes read at a time: few calls, and still in the core's cache when they are hashed or picked from.
PIECE = 1 << 20
# The header's length stands in the first 8 bytes; safetensors itself refuses headers above this.
HEADER = 100_000_000
NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
# Is shown all bytes of a file, in order.
Seen = Callable[[memoryview], None]


class Doubt(Exception):
    """The file is not as expected. What is wrong with it, if anything, the plain reading says."""


def room(rows: int, width: int, dtype: torch.dtype) -> Float[Tensor, "row width"]:
    """Memory for rows, not yet touched; of huge pages, where the system has them.

    With pages of 4 KiB the first filling takes more than twice as long, most of it page faults.
    """
    size = max(1, rows * width * dtype.itemsize)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype, count=rows * width).view(rows, width)


def read_rows(
    path: Path, size: int, hook: str, sequences: int, into: Float[Tensor, "row width"], seen: Seen | None
) -> None:
    """Read the rows that count of a shard's first sequences.

    Args:
        path: the shard.
        size: bytes that it should have.
        hook: the hook point.
        sequences: how many of its first sequences to read.
        into: where to, contiguous, in the stored dtype: exactly as many rows as count.
        seen: is shown the whole file, in order, which is then read once; None reads only what is needed.

    Raises:
        Doubt: the file is not as expected; `into` may be half filled.
        OSError: it cannot be read.
    """
    with open(path, "rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_size != size:
            raise Doubt
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        reader = _Reader(file.fileno(), size, seen)
        (length,) = struct.unpack("<Q", reader.peek(0, 8))
        if length > min(HEADER, size - 8):
            raise Doubt
        first, kept = _layout(reader, 8 + length, hook, sequences, into)
        reader.skip(first)
        rows = into.view(torch.uint8).numpy()
        reader.rows(rows, kept)
        reader.skip(size)


def _layout(reader: _Reader, start: int, hook: str, sequences: int, into: Tensor) -> tuple[int, np.ndarray]:
    """Where in the file the hook point's rows begin, and which positions of the first sequences count."""
    try:
        header = json.loads(reader.peek(8, start - 8))
        values, mask = header[hook], header[keep_key(hook)]
        shape, (begin, end), (at, to) = values["shape"], values["data_offsets"], mask["data_offsets"]
        there, context, width = shape
        fine = (
            (values["dtype"], mask["dtype"]) == (NAMES[into.dtype], "BOOL")
            and mask["shape"] == shape[:2]
            and width == into.shape[1]
            and sequences <= there
            and end - begin == there * context * width * into.element_size()
            and to - at == there * context
            and min(begin, at) >= 0
        )
        keep = np.frombuffer(reader.peek(start + at, sequences * context) if fine else b"", dtype=np.uint8)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Doubt from error
    kept = keep.nonzero()[0]
    if not fine or len(kept) != len(into) or (len(keep) and keep.max() > 1):
        raise Doubt
    return start + begin, kept


class _Reader:
    """Goes through a file once, from the front."""

    def __init__(self, handle: int, size: int, seen: Seen | None) -> None:
        self._handle, self._size, self._seen = handle, size, seen
        self._at = 0
        self._scratch = np.empty(PIECE, np.uint8)

    def peek(self, at: int, size: int) -> bytes:
        """Some bytes from anywhere, which are not hashed."""
        if not 0 <= at <= at + size <= self._size:
            raise Doubt
        found = np.empty(size, np.uint8)
        self._fill(found.data, at)
        return found.tobytes()

    def skip(self, to: int) -> None:
        """Go on to a place in the file; what lies between is only hashed."""
        if not self._at <= to <= self._size:
            raise Doubt
        if self._seen is None:
            self._at = to
        while self._at < to:
            self._next(self._scratch.data[: min(PIECE, to - self._at)])

    def rows(self, into: np.ndarray, kept: np.ndarray) -> None:
        """Of the rows from here on, those with the given numbers. Rows are bytes, [row, bytes of a row]."""
        width, last = into.shape[1], int(kept[-1]) + 1 if len(kept) else 0
        step = max(1, PIECE // width)
        scratch = self._scratch if width <= PIECE else np.empty(width, np.uint8)
        # Rows after the last one that counts need not be read.
        for a in range(0, last, step):
            b = min(a + step, last)
            lo, hi = np.searchsorted(kept, (a, b))
            if hi - lo == b - a:
                self._next(into[lo:hi].reshape(-1).data)
                continue
            part = scratch[: (b - a) * width]
            self._next(part.data)
            # "clip": the mode that writes to `out` itself. The numbers are in range.
            np.take(part.reshape(b - a, width), kept[lo:hi] - a, axis=0, out=into[lo:hi], mode="clip")

    def _next(self, into: memoryview) -> None:
        self._fill(into, self._at)
        self._at += len(into)
        if self._seen is not None:
            self._seen(into)

    def _fill(self, into: memoryview, at: int) -> None:
        done = 0
        while done < len(into):
            got = os.preadv(self._handle, [into[done:]], at + done)
            if got == 0:
                raise Doubt
            done += got
