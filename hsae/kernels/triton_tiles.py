"""What the Triton kernels share: sizes of tiles and their tuning, products, loads, and where Triton can be used.

The `triton_` modules import triton where it is installed, so import them only where they are used. With
`TRITON_INTERPRET=1`, set before triton is imported, the kernels run on the CPU, in numpy: for tests.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, no_type_check

import torch
from jaxtyping import Float
from torch import Tensor

triton: Any
tl: Any
try:
    import triton
    import triton.language as tl
except ImportError:  # only the references can be used then
    triton = tl = None

Precision = Literal["ieee", "tf32", "tf32x3"]
"""of float32 products: exact to rounding, on tensor cores with 10 bits of mantissa, or in three such products"""

INTERPRETED = triton is not None and os.environ.get("TRITON_INTERPRET", "0") == "1"
NARROW, NARROW_TRIPLE = 256, 128
"""the largest widths of which a tile of gradients fits a multiprocessor; for float32 products in three of TF32"""


@dataclass(frozen=True)
class Tiles:
    """How a kernel cuts its work: latents and tokens of a tile (powers of two, 16 at least), warps, pipeline stages."""

    latents: int
    tokens: int
    warps: int = 4
    stages: int = 2


@dataclass(frozen=True)
class Gradients:
    """The loss' gradients summed over tokens; None for what was not asked for, or where one matrix holds both.

    Attributes:
        W_enc: of the encoder; tied, of the one matrix.
        b_enc: of the encoder's bias.
        W_dec: of the decoder.
        fired: on how many tokens each latent was active.
    """

    W_enc: Float[Tensor, "setup latent width"] | None
    b_enc: Float[Tensor, "setup latent"] | None
    W_dec: Float[Tensor, "setup latent width"] | None
    fired: Float[Tensor, "setup latent"]


def jit(function: Any) -> Any:
    """`triton.jit`, where there is Triton. Beside it stands `no_type_check`: kernels are not checked as Python is."""
    return function if triton is None else triton.jit(function)


_tuned: dict[tuple[object, ...], Tiles] = {}


def candidates(kernel: str, x: Tensor, precision: Precision = "ieee", k: int = 0) -> Sequence[Tiles]:
    """Tiles worth trying on a Hopper GPU, the likeliest first: there that one spills no registers, or few.

    Args:
        kernel: `relu.forward`, `relu.gradients`, `softhebb.compete`, `softhebb.statistics`, `topk` or `wide`.
        x: the activations; their width and dtype count.
        precision: of float32 products: what is not TF32 takes more registers.
        k: of `topk`: a tile's latents are groups, of which it wants twice k.
    """
    wide, long = padded(x.shape[-1]), x.element_size() == 4
    if kernel == "topk":
        groups = max(128, padded(2 * k))
        if groups >= 512:
            return [Tiles(groups, 16, 8, 1 if long else 2)]
        short = [Tiles(groups, 32, 8, 2), Tiles(groups, 32, 4, 2)]
        return short[:1] if long else [Tiles(128, 64, 8, 2), *short] if groups == 128 else short[:1]
    if long and precision == "tf32x3" and (kernel, wide) in _TRIPLE:
        return _TRIPLE[kernel, wide]
    if long and precision != "tf32":
        return _EXACT.get((kernel, min(wide, NARROW)), [Tiles(32, 32, 8, 1)])
    if long:
        return _LONG.get((kernel, min(wide, NARROW)), [Tiles(64, 64, 4, 2)])
    return _SHORT.get((kernel, max(64, min(wide, NARROW))), [Tiles(128, 128, 8, 3), Tiles(64, 128, 4, 3)])


_SHORT = {
    ("relu.forward", 64): [Tiles(128, 128, 8, 3), Tiles(64, 128, 8, 3), Tiles(64, 64, 4, 3)],
    ("relu.forward", 128): [Tiles(64, 128, 8, 3), Tiles(64, 128, 8, 2), Tiles(64, 64, 4, 3)],
    ("relu.forward", 256): [Tiles(64, 64, 8, 2), Tiles(32, 128, 8, 2)],
    ("relu.gradients", 64): [Tiles(128, 64, 8, 3), Tiles(64, 64, 4, 3), Tiles(128, 128, 8, 2)],
    ("relu.gradients", 128): [Tiles(64, 64, 8, 3), Tiles(128, 64, 8, 2), Tiles(64, 32, 4, 3)],
    ("relu.gradients", 256): [Tiles(64, 32, 8, 2), Tiles(64, 64, 8, 2)],
    ("softhebb.statistics", 64): [Tiles(128, 64, 8, 3), Tiles(64, 64, 4, 3), Tiles(128, 128, 8, 2)],
    ("softhebb.statistics", 128): [Tiles(128, 64, 8, 3), Tiles(64, 64, 4, 3), Tiles(128, 128, 8, 2)],
    ("softhebb.statistics", 256): [Tiles(64, 64, 8, 2), Tiles(128, 64, 8, 2)],
}
_LONG = {
    ("relu.forward", 128): [Tiles(32, 64, 4, 2)],
    ("relu.forward", 256): [Tiles(32, 32, 8, 1)],
    ("relu.gradients", 128): [Tiles(64, 32, 8, 2)],
    ("relu.gradients", 256): [Tiles(32, 32, 8, 1)],
    ("softhebb.statistics", 256): [Tiles(32, 32, 8, 2)],
}
_EXACT = {
    ("relu.forward", 64): [Tiles(32, 64, 8, 2), Tiles(64, 64, 8, 2), Tiles(32, 32, 4, 2)],
    ("relu.forward", 128): [Tiles(32, 64, 8, 2), Tiles(16, 32, 8, 1)],
    ("relu.forward", 256): [Tiles(32, 64, 8, 2)],
    ("relu.gradients", 64): [Tiles(64, 32, 8, 1), Tiles(32, 32, 8, 2), Tiles(32, 32, 4, 1)],
    ("relu.gradients", 128): [Tiles(16, 32, 8, 1)],
    ("relu.gradients", 256): [Tiles(16, 32, 8, 1), Tiles(32, 32, 8, 1)],
    ("softhebb.compete", 64): [Tiles(64, 64, 4, 2)],
    ("softhebb.compete", 128): [Tiles(64, 64, 4, 2)],
    ("softhebb.statistics", 64): [Tiles(32, 64, 8, 2), Tiles(64, 64, 8, 2)],
    ("softhebb.statistics", 128): [Tiles(32, 64, 8, 2)],
}


_TRIPLE = {("relu.forward", 128): [Tiles(16, 32, 8, 1)]}


def narrow(x: Tensor, precision: Precision) -> bool:
    """Whether tiles of so wide activations fit a multiprocessor; else `triton_wide` takes them."""
    return x.shape[-1] <= (NARROW_TRIPLE if x.element_size() == 4 and precision == "tf32x3" else NARROW)


def tiles_for(kernel: str, x: Tensor, precision: Precision = "ieee", k: int = 0) -> Tiles:
    """The tiles that `tune` found for this kernel, width and dtype on this device; else the first candidate."""
    return _tuned.get(_key(kernel, x, precision, k), candidates(kernel, x, precision, k)[0])


def tune(
    kernel: str, x: Tensor, run: Callable[[Tiles], object], precision: Precision = "ieee", k: int = 0
) -> dict[Tiles, float]:
    """Time a kernel with each candidate and remember the best. Milliseconds; what does not fit is left out."""
    from triton.testing import do_bench  # pyright: ignore[reportMissingImports]

    times: dict[Tiles, float] = {}
    for tiles in candidates(kernel, x, precision, k):
        try:
            middle: Any = do_bench(lambda tiles=tiles: run(tiles), warmup=5, rep=30, return_mode="median")
            times[tiles] = middle
        except triton.runtime.errors.OutOfResources:
            continue
    if times:
        _tuned[_key(kernel, x, precision, k)] = min(times, key=times.__getitem__)
    return times


def _key(kernel: str, x: Tensor, precision: str, k: int) -> tuple[object, ...]:
    device = torch.cuda.get_device_name(x.device) if x.is_cuda else "cpu"
    return kernel, device, x.shape[-1], str(x.dtype), precision, k


def usable(x: Tensor) -> bool:
    """Whether the kernels can take this tensor: on a CUDA device, or interpreted; 32 or 16 bits."""
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    return triton is not None and x.dtype in dtypes and (x.is_cuda or INTERPRETED)


def widen(x: Tensor) -> bool:
    """Whether products must be of float32: the interpreter would multiply the bits of bfloat16 as integers."""
    return INTERPRETED and x.dtype == torch.bfloat16


def padded(width: int) -> int:
    """The power of two, 16 at least, that holds a width."""
    return max(16, 1 << (width - 1).bit_length())


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def splits(tiles: int, tokens: int, tile: int, device: torch.device) -> int:
    """Into how many runs of tokens to cut the work of so many tiles of latents, to occupy all multiprocessors."""
    if device.type != "cuda":
        return 1
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    wanted = cdiv(2 * processors, tiles)
    return max(1, min(wanted, cdiv(tokens, 4 * tile), 16))


def block_tokens(setups: int, latents: int, itemsize: int) -> int:
    """Tokens whose two matrices [setup, token, latent] stay in a level-2 cache of 50 MB; 512 at least."""
    return max(512, (32 << 20) // (2 * setups * latents * itemsize) // 128 * 128)


@jit
@no_type_check
def dot(a, b, acc, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """acc + a b in float32. `a` is brought to b's dtype."""
    a = a.to(b.dtype)
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@jit
@no_type_check
def load_rows(base, row, count, first, D: tl.constexpr, BD: tl.constexpr):
    """A tile [row, BD] of a matrix [count, D], from column `first` on; 0 outside."""
    column = first + tl.arange(0, BD)
    at = base + row.to(tl.int64)[:, None] * D + column[None, :]
    if D % BD == 0:
        return tl.load(at, mask=(row < count)[:, None], other=0.0)
    return tl.load(at, mask=(row < count)[:, None] & (column < D)[None, :], other=0.0)


@jit
@no_type_check
def store_rows(base, tile, row, count, D: tl.constexpr, BD: tl.constexpr):
    """Write a tile [row, BD] into a matrix [count, D]."""
    column = tl.arange(0, BD)
    at = base + row.to(tl.int64)[:, None] * D + column[None, :]
    tl.store(at, tile.to(base.dtype.element_ty), mask=(row < count)[:, None] & (column < D)[None, :])


@jit
@no_type_check
def drive(
    x, xs, W, b, token, latent, T, K, D: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr
):
    """u = x Wᵀ + b of a tile, [token, latent]; -inf beyond K. `xs`: the tokens' tile, where D fits into BD."""
    bias = tl.load(b + latent, mask=latent < K, other=float("-inf")).to(tl.float32)
    u = tl.zeros((token.shape[0], latent.shape[0]), tl.float32)
    if D <= BD:
        u = dot(xs, tl.trans(load_rows(W, latent, K, 0, D, BD)), u, PRECISION, WIDEN)
    else:
        for first in range(0, D, BD):
            part = load_rows(x, token, T, first, D, BD)
            u = dot(part, tl.trans(load_rows(W, latent, K, first, D, BD)), u, PRECISION, WIDEN)
    return u + bias[None, :]


@jit
@no_type_check
def joined(top, total, winner, u, latent, temperature, K):
    """A row's running softmax, with a tile u [token, latent] more: the top, Σ e^(t (u - top)), the winner.

    Ties go to the lowest latent: of a tile's highest the lowest wins, and a later tile must be higher.
    """
    high = tl.max(u, 1)
    first = tl.min(tl.where(u == high[:, None], latent[None, :], K), 1)
    winner = tl.where(high > top, first, winner)
    new = tl.maximum(top, high)
    scale = temperature * 1.4426950408889634
    total = total * tl.exp2((top - new) * scale) + tl.sum(tl.exp2((u - new[:, None]) * scale), 1)
    return new, total, winner
