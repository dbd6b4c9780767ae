"""TopK by Triton: each token's k highest positive drives, without [token, latent]. Ties go to the lowest latent.

Positive floats are ordered like their bits, so drives are compared as integers. Four kernels:

1. `_bound`: latents fall into groups by their place in a tile, and each group's highest drive stays in a register. The
   k-th of the groups' maxima is a lower bound of the k-th highest drive, and a close one: with G groups, latents in no
   particular order, about k · (1 + k / 2G) drives are not below it. It is found bit by bit.
2. `_collect`: the drives anew; the few that are not below the bound are written out, in the order of latents.
3. `_select`: the k-th highest of a token's candidates, bit by bit, and the k that are not below it.
4. `_refine`: does nothing, unless a token had more candidates than there is room for (many equal drives, latents in an
   unlucky order): then it finds the k-th highest of all drives, bit by bit, in 31 passes over the latents.

Nothing waits for the host. Everything has a leading axis `setup`: weights of several SAEs that see the same x.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import no_type_check

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hsae.kernels.triton_tiles import (
    Precision,
    Tiles,
    cdiv,
    drive,
    jit,
    load_rows,
    padded,
    tiles_for,
    tl,
    usable,
    widen,
)

# More of them than this a token, and sorting would be the better tool.
MOST = 256
# The bound is found to this bit of the drive's mantissa, and lies one such step lower: that is more than two kernels'
# rounding of the same drive may differ by.
COARSE = 12


@dataclass(frozen=True)
class Chosen:
    """The latents that each token uses, in ascending order, and their code; 0 and 0 where a token uses fewer than k."""

    latent: Int[Tensor, "setup token k"]
    code: Float[Tensor, "setup token k"]


def reference(
    x: Float[Tensor, "token width"], W: Float[Tensor, "setup latent width"], b: Float[Tensor, "setup latent"], k: int
) -> Chosen:
    """What `choose` computes, plainly."""
    u = torch.einsum("td,skd->stk", x, W) + b[:, None]
    values, latent = u.sort(dim=2, descending=True, stable=True)
    values, latent = values[..., :k].relu(), latent[..., :k]
    # Unused places go last.
    latent = latent.masked_fill(values == 0, W.shape[1]).sort(2)
    values = values.gather(2, latent.indices)
    return Chosen(latent.values.masked_fill(values == 0, 0).int(), values)


def fused(x: Float[Tensor, "token width"], k: int) -> bool:
    """Whether `choose` can take these activations and this k; else the reference serves."""
    return usable(x) and k <= MOST


def choose(
    x: Float[Tensor, "token width"],
    W: Float[Tensor, "setup latent width"],
    b: Float[Tensor, "setup latent"],
    k: int,
    *,
    precision: Precision = "ieee",
    tiles: Tiles | None = None,
    room: int = 0,
) -> Chosen:
    """Each token's k highest positive drives.

    Args:
        x: activations, centred.
        W: the encoder's rows, in x's dtype.
        b: its bias, float32.
        k: how many, 256 at most, and no more than there are latents.
        precision: of float32 products.
        tiles: how to cut the work. A tile's latents are the groups: twice k of them, or more.
        room: candidates that a token may have before it is refined; a power of two, k or more; by default, twice k.
    """
    tiles = tiles or tiles_for("topk", x, precision, k)
    (setups, K, D), T = W.shape, len(x)
    x, W, b = x.contiguous(), W.contiguous(), b.contiguous()
    room = room or max(32, padded(2 * k))
    bound, count = torch.empty(2, setups, T, dtype=torch.int32, device=x.device)
    place = torch.empty(setups, T, room, dtype=torch.int32, device=x.device)
    drives = torch.empty(setups, T, room, dtype=torch.float32, device=x.device)
    latent = torch.zeros(setups, T, k, dtype=torch.int32, device=x.device)
    code = torch.zeros(setups, T, k, dtype=torch.float32, device=x.device)
    grid = (cdiv(T, tiles.tokens), setups)
    # As much of the width at a time as leaves shared memory for two stages.
    whole = D <= 128 and padded(D) * tiles.latents * x.element_size() <= 1 << 16
    same = {
        "D": D, "BD": padded(D) if whole else min(64, padded(D)), "BT": tiles.tokens, "BK": tiles.latents,
        "PRECISION": precision, "WIDEN": widen(x), "num_warps": tiles.warps, "num_stages": tiles.stages,
    }  # fmt: skip
    _bound[grid](x, W, b, bound, T, K, k, **same, COARSE=COARSE)
    _collect[grid](x, W, b, bound, count, place, drives, T, K, **same, ROOM=room)
    rows = max(1, 1024 // room)
    _select[(cdiv(T, rows), setups)](count, place, drives, latent, code, T, k, ROOM=room, BT=rows, num_warps=4)
    _refine[grid](x, W, b, count, latent, code, T, K, k, **same, ROOM=room)
    return Chosen(latent, code)


@jit
@no_type_check
def _key(u):
    """Integers in the order of the drives: their bits if positive, 0 if not; NaN is highest, so that it shows."""
    return tl.where(u > 0, u.to(tl.int32, bitcast=True), tl.where(u != u, 0x7FC00000, 0))


@jit
@no_type_check
def _kth(key, k, LAST: tl.constexpr):
    """For each row the k-th highest key, down to bit `LAST`; 0 if fewer than k are above 0. [row]"""
    found = tl.zeros((key.shape[0],), tl.int32)
    for step in range(31 - LAST):
        trial = found | (1 << (30 - step))
        enough = tl.sum((key >= trial[:, None]).to(tl.int32), 1) >= k
        found = tl.where(enough, trial, found)
    return found


@jit
@no_type_check
def _bound(
    x, W, b, bound, T, K, k,
    D: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr, COARSE: tl.constexpr,
):  # fmt: skip
    token, setup = tl.program_id(0) * BT + tl.arange(0, BT), tl.program_id(1).to(tl.int64)
    xs = load_rows(x, token, T, 0, D, BD)
    high = tl.zeros((BT, BK), tl.int32)
    for start in range(0, K, BK):
        latent = start + tl.arange(0, BK)
        u = drive(x, xs, W + setup * K * D, b + setup * K, token, latent, T, K, D, BD, PRECISION, WIDEN)
        high = tl.maximum(high, _key(u))
    low = tl.maximum(_kth(high, k, COARSE) - (1 << COARSE), 1)
    tl.store(bound + setup * T + token, low, mask=token < T)


@jit
@no_type_check
def _collect(
    x, W, b, bound, count, place, drives, T, K,
    D: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr, ROOM: tl.constexpr,
):  # fmt: skip
    token, setup = tl.program_id(0) * BT + tl.arange(0, BT), tl.program_id(1).to(tl.int64)
    low = tl.load(bound + setup * T + token, mask=token < T, other=0x7FFFFFFF)
    xs = load_rows(x, token, T, 0, D, BD)
    number = tl.zeros((BT,), tl.int32)
    # Within the tile's own stretch of memory 32 bits do, and take half the registers.
    first = (setup * T + tl.program_id(0) * BT) * ROOM
    place, drives, row = place + first, drives + first, tl.arange(0, BT) * ROOM
    for start in range(0, K, BK):
        latent = start + tl.arange(0, BK)
        u = drive(x, xs, W + setup * K * D, b + setup * K, token, latent, T, K, D, BD, PRECISION, WIDEN)
        found = (_key(u) >= low[:, None]) & (latent < K)[None, :]
        at = number[:, None] + tl.cumsum(found.to(tl.int32), 1) - 1
        fits = found & (at < ROOM)
        tl.store(place + (row[:, None] + at), tl.broadcast_to(latent[None, :], (BT, BK)), mask=fits)
        tl.store(drives + (row[:, None] + at), u, mask=fits)
        number += tl.sum(found.to(tl.int32), 1)
    tl.store(count + setup * T + token, number, mask=token < T)


@jit
@no_type_check
def _select(count, place, drives, latent, code, T, k, ROOM: tl.constexpr, BT: tl.constexpr):
    token, setup = tl.program_id(0) * BT + tl.arange(0, BT), tl.program_id(1).to(tl.int64)
    number = tl.load(count + setup * T + token, mask=token < T, other=0)
    column = tl.arange(0, ROOM)
    at = (setup * T + token.to(tl.int64))[:, None] * ROOM + column[None, :]
    there = column[None, :] < number[:, None]
    u = tl.load(drives + at, mask=there, other=0.0)
    key = _key(u)
    edge = _kth(key, k, 0)
    above, tie = key > edge[:, None], (key == edge[:, None]) & (key > 0)
    left = k - tl.sum(above.to(tl.int32), 1)
    taken = above | (tie & (tl.cumsum(tie.to(tl.int32), 1) <= left[:, None]))
    out = (setup * T + token.to(tl.int64))[:, None] * k + tl.cumsum(taken.to(tl.int32), 1) - 1
    tl.store(latent + out, tl.load(place + at, mask=there, other=0), mask=taken)
    tl.store(code + out, u, mask=taken)


@jit
@no_type_check
def _refine(
    x, W, b, count, latents, code, T, K, k,
    D: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr, ROOM: tl.constexpr,
):  # fmt: skip
    token, setup = tl.program_id(0) * BT + tl.arange(0, BT), tl.program_id(1).to(tl.int64)
    over = tl.load(count + setup * T + token, mask=token < T, other=0) > ROOM
    if tl.max(over.to(tl.int32), 0) > 0:
        xs = load_rows(x, token, T, 0, D, BD)
        W, b = W + setup * K * D, b + setup * K
        edge, above = tl.zeros((BT,), tl.int32), tl.zeros((BT,), tl.int32)
        # The 32nd pass counts what is above the edge.
        for step in range(32):
            trial = tl.where(step < 31, edge | (1 << tl.maximum(30 - step, 0)), edge + 1)
            number = tl.zeros((BT,), tl.int32)
            for start in range(0, K, BK):
                latent = start + tl.arange(0, BK)
                u = drive(x, xs, W, b, token, latent, T, K, D, BD, PRECISION, WIDEN)
                number += tl.sum((_key(u) >= trial[:, None]).to(tl.int32), 1)
            edge = tl.where((step < 31) & (number >= k), trial, edge)
            above = number
        ties, done = tl.zeros((BT,), tl.int32), tl.zeros((BT,), tl.int32)
        first = (setup * T + tl.program_id(0) * BT) * k
        latents, code, row = latents + first, code + first, tl.arange(0, BT) * k
        for start in range(0, K, BK):
            latent = start + tl.arange(0, BK)
            u = drive(x, xs, W, b, token, latent, T, K, D, BD, PRECISION, WIDEN)
            key = _key(u)
            tie = (key == edge[:, None]) & (key > 0)
            rank = ties[:, None] + tl.cumsum(tie.to(tl.int32), 1)
            taken = ((key > edge[:, None]) | (tie & (rank <= (k - above)[:, None]))) & over[:, None]
            out = (row + done)[:, None] + tl.cumsum(taken.to(tl.int32), 1) - 1
            tl.store(latents + out, tl.broadcast_to(latent[None, :], (BT, BK)), mask=taken)
            tl.store(code + out, u, mask=taken)
            ties += tl.sum(tie.to(tl.int32), 1)
            done += tl.sum(taken.to(tl.int32), 1)
