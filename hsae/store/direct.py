"""A shard's rows, read straight into memory that is there already and hashed on the way: one pass over the file."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hsae.header import Header, length, parse
from hsae.store.manifest import keep_key

# Bytes read at a time: few calls, and still in the core's cache when they are hashed or picked from.
PIECE = 1 << 20
# The tensors of a shard: the type of their numbers, as safetensors calls it, and their shape.
Layout = dict[str, tuple[str, tuple[int, ...]]]
# Is shown all bytes of a file, in order.
Seen = Callable[[memoryview], None]


class Doubt(Exception):
    """The file is not as expected; the message says how."""


def check(header: Header, layout: Layout) -> None:
    """Hold a shard's header against what the manifest says.

    Raises:
        Doubt: other tensors, shapes or types.
    """
    if header.tensors.keys() != layout.keys():
        raise Doubt(f"it holds {', '.join(header.tensors) or 'nothing'}; the manifest says {', '.join(layout)}")
    for name, wanted in layout.items():
        found = header.tensors[name].dtype, header.tensors[name].shape
        if found != wanted:
            raise Doubt(f"{name} is {found[0]} {list(found[1])}, the manifest says {wanted[0]} {list(wanted[1])}")


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
    path: Path, layout: Layout, hook: str, sequences: int, into: Float[Tensor, "row width"], seen: Seen | None
) -> None:
    """Read the rows that count of a shard's first sequences.

    Args:
        path: the shard.
        layout: the tensors that it should hold.
        hook: the hook point.
        sequences: how many of its first sequences to read.
        into: where to, contiguous, in the stored dtype: exactly as many rows as count.
        seen: is shown the whole file, in order, which is then read once; None reads only what is needed.

    Raises:
        Doubt: the file is not as expected; `into` may be half filled.
        BadHeader: its header contradicts itself.
        OSError: it cannot be read.
    """
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        reader = _Reader(file.fileno(), size, seen)
        header = parse(reader.peek(0, 8 + length(reader.peek(0, min(8, size)), size)), size)
        check(header, layout)
        mask = header.tensors[keep_key(hook)]
        keep = np.frombuffer(reader.peek(mask.begin, sequences * mask.shape[1]), dtype=np.uint8)
        kept = keep.nonzero()[0]
        if len(kept) != len(into) or (len(keep) and keep.max() > 1):
            raise Doubt("other positions count than the manifest says")
        reader.skip(header.tensors[hook].begin)
        rows = into.view(torch.uint8).numpy()
        reader.rows(rows, kept)
        reader.skip(size)


class _Reader:
    """Goes through a file once, from the front."""

    def __init__(self, handle: int, size: int, seen: Seen | None) -> None:
        self._handle, self._size, self._seen = handle, size, seen
        self._at = 0
        self._scratch = np.empty(PIECE, np.uint8)

    def peek(self, at: int, size: int) -> bytes:
        """Some bytes from anywhere, which are not hashed."""
        found = np.empty(size, np.uint8)
        self._fill(found.data, at)
        return found.tobytes()

    def skip(self, to: int) -> None:
        """Go on to a place in the file; what lies between is only hashed."""
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
                raise Doubt("it became shorter while it was read")
            done += got
