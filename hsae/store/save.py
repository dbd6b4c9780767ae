"""A shard as a file: its bytes with their checksum, and the sums over its rows, each in one pass."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# What safetensors calls the types that shards hold.
SAFETENSORS = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int32: "I32",
    torch.bool: "BOOL",
}
# Bytes that are written and summed at a time; numbers whose moments are taken at a time.
PIECE, BLOCK = 1 << 20, 1 << 14


def save(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a safetensors file and give its sha256. Unlike the library's, it copies nothing and reads nothing again.

    (The library's save_file also writes through a temporary file of its own, which a kill leaves behind.)
    """
    # As the library orders them, so that every tensor starts at a multiple of its numbers' size.
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, not tensors[name].is_floating_point(), name))
    header, end = {}, 0
    for name in names:
        start, end = end, end + tensors[name].nbytes
        shape, kind = list(tensors[name].shape), SAFETENSORS[tensors[name].dtype]
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with open(path, "wb", buffering=0) as file:
        for part in (len(text).to_bytes(8, "little") + text, *(_bytes(tensors[name]) for name in names)):
            # In pieces that are still in the cache when they are written.
            for start in range(0, len(part), PIECE):
                piece = memoryview(part)[start : start + PIECE]
                digest.update(piece)
                while piece:
                    piece = piece[file.write(piece) :]
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def moments(values: Float[Tensor, "row width"], keep: Bool[Tensor, " row"]) -> dict[str, Any] | None:
    """Count, Σx and Σx² over the rows that count, in float64; None if any row, counting or not, is not finite."""
    total = torch.zeros(values.shape[1], dtype=torch.float64)
    square, everything = torch.zeros_like(total), torch.zeros_like(total)
    # Blocks of a few thousand numbers stay in the cache, and PyTorch leaves them to this thread alone.
    rows = max(1, BLOCK // values.shape[1])
    for block, mask in zip(values.split(rows), keep.split(rows), strict=True):
        exact = block.double()
        sums = exact.sum(0)
        everything += sums
        if not mask.all():
            exact = exact[mask]
            sums = exact.sum(0)
        total += sums
        square += exact.square_().sum(0)
    if not everything.isfinite().all():
        return None
    return {"count": int(keep.sum()), "sum": total.tolist(), "square": square.tolist()}
