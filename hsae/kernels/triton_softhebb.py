"""SoftHebb's statistics by Triton, in two passes; [token, latent] never leaves the chip.

Per token, with u = W x + b and y = softmax(temperature · u) over latents, s is y for the winner (the latent with the
highest u, the first of several) and -y for the others; unsigned, s is y. Wanted are Σ s xᵀ, Σ s and Σ y over tokens:
from them and W alone comes the rule's change (see `hsae.rules.softhebb`).

1. `compete`: for a tile of tokens, over latents: the softmax's denominator and the winner. `triton_relu.forward` finds
   both on the way, where the reconstruction is wanted too.
2. `statistics`: for a tile of latents, over tokens: u anew, then the sums, in a fixed order.

Everything has a leading axis `setup`: weights of several SAEs that see the same x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import no_type_check

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hsae.kernels.triton_tiles import (
    Precision,
    Tiles,
    cdiv,
    dot,
    drive,
    jit,
    joined,
    load_rows,
    narrow,
    padded,
    splits,
    store_rows,
    tiles_for,
    tl,
    usable,
    widen,
)


@dataclass(frozen=True)
class Competition:
    """Each token's log Σ exp(temperature · u) over latents, its winner, and the sum of its drives above 0."""

    logsumexp: Float[Tensor, "setup token"]
    winner: Int[Tensor, "setup token"]
    total: Float[Tensor, "setup token"]


@dataclass(frozen=True)
class Sums:
    """Sums over tokens: of s xᵀ, of s, and of y; and on how many each latent's drive was above 0."""

    sx: Float[Tensor, "setup latent width"]
    s: Float[Tensor, "setup latent"]
    y: Float[Tensor, "setup latent"]
    fired: Float[Tensor, "setup latent"]


def reference(
    x: Float[Tensor, "token width"],
    W: Float[Tensor, "setup latent width"],
    b: Float[Tensor, "setup latent"],
    temperature: float,
    signed: bool = True,
) -> Sums:
    """What `compete` and `statistics` compute together, plainly."""
    u = torch.einsum("td,skd->stk", x, W) + b[:, None]
    y = (temperature * u).softmax(2)
    s = y
    if signed:
        winner = u.argmax(2, keepdim=True)
        s = (-y).scatter(2, winner, y.gather(2, winner))
    return Sums(torch.einsum("stk,td->skd", s, x), s.sum(1), y.sum(1), (u > 0).sum(1).float())


def fused(x: Float[Tensor, "token width"]) -> bool:
    """Whether `compete` and `statistics` can take these activations; else the reference serves."""
    return usable(x)


def compete(
    x: Float[Tensor, "token width"],
    W: Float[Tensor, "setup latent width"],
    b: Float[Tensor, "setup latent"],
    temperature: float,
    *,
    precision: Precision = "ieee",
    tiles: Tiles | None = None,
) -> Competition:
    """The first pass.

    Args:
        x: activations. Temperatures of tens want float32: y carries temperature times the error of u.
        W: what the rule's drive is computed with, in x's dtype.
        b: its bias, float32.
        temperature: inverse temperature of the softmax.
        precision: of float32 products.
        tiles: how to cut the work; those tuned for this width by default.
    """
    tiles = tiles or tiles_for("softhebb.compete", x, precision)
    (setups, K, D), T = W.shape, len(x)
    lse, total = torch.empty(2, setups, T, dtype=torch.float32, device=x.device)
    winner = torch.empty(setups, T, dtype=torch.int32, device=x.device)
    _compete[(cdiv(T, tiles.tokens), setups)](
        x.contiguous(), W.contiguous(), b.contiguous(), lse, winner, total, T, K, float(temperature),
        D=D, BD=min(128, padded(D)), BT=tiles.tokens, BK=tiles.latents, PRECISION=precision, WIDEN=widen(x),
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return Competition(lse, winner, total)


def statistics(
    x: Float[Tensor, "token width"],
    W: Float[Tensor, "setup latent width"],
    b: Float[Tensor, "setup latent"],
    temperature: float,
    signed: bool = True,
    competition: Competition | None = None,
    *,
    precision: Precision = "ieee",
    tiles: Tiles | None = None,
) -> Sums:
    """The second pass, and the first where it was not done.

    Args:
        x: activations.
        W: what the rule's drive is computed with, in x's dtype.
        b: its bias, float32.
        temperature: inverse temperature of the softmax.
        signed: losers count negatively.
        competition: of the first pass, with the same arguments.
        precision: of float32 products.
        tiles: how to cut the work.
    """
    competition = competition or compete(x, W, b, temperature, precision=precision)
    if not narrow(x, precision):
        from hsae.kernels import triton_wide

        return Sums(
            *triton_wide.signals(
                x, W, b, temperature, signed, competition.logsumexp, competition.winner, precision, tiles
            )
        )
    tiles = tiles or tiles_for("softhebb.statistics", x, precision)
    (setups, K, D), T = W.shape, len(x)
    blocks = cdiv(K, tiles.latents)
    runs = splits(blocks * setups, T, tiles.tokens, x.device)
    # Whole tiles to each run.
    run = cdiv(cdiv(T, tiles.tokens), runs) * tiles.tokens
    make = lambda *shape: torch.empty(runs, setups, K, *shape, dtype=torch.float32, device=x.device)  # noqa: E731
    sx, s, y, fired = make(D), make(), make(), make()
    _statistics[(blocks, runs, setups)](
        x.contiguous(), W.contiguous(), b.contiguous(), competition.logsumexp, competition.winner, sx, s, y, fired,
        T, K, run, float(temperature) * math.log2(math.e),
        D=D, BD=padded(D), BT=tiles.tokens, BK=tiles.latents, SIGNED=signed, PRECISION=precision, WIDEN=widen(x),
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return Sums(sx.sum(0), s.sum(0), y.sum(0), fired.sum(0))


@jit
@no_type_check
def _compete(
    x, W, b, lse, winners, totals, T, K, temperature,
    D: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    token, setup = tl.program_id(0) * BT + tl.arange(0, BT), tl.program_id(1).to(tl.int64)
    W, b = W + setup * K * D, b + setup * K
    xs = load_rows(x, token, T, 0, D, BD)
    top, total = tl.full((BT,), float("-inf"), tl.float32), tl.zeros((BT,), tl.float32)
    winner, size = tl.zeros((BT,), tl.int32), tl.zeros((BT,), tl.float32)
    for start in range(0, K, BK):
        latent = start + tl.arange(0, BK)
        u = drive(x, xs, W, b, token, latent, T, K, D, BD, PRECISION, WIDEN)
        size += tl.sum(tl.maximum(u, 0.0), 1)
        top, total, winner = joined(top, total, winner, u, latent, temperature, K)
    tl.store(totals + setup * T + token, size, mask=token < T)
    tl.store(lse + setup * T + token, temperature * top + tl.log(total), mask=token < T)
    tl.store(winners + setup * T + token, winner, mask=token < T)


@jit
@no_type_check
def _statistics(
    x, W, b, lse, winners, sx, s_sum, y_sum, fired, T, K, run, scale,
    D: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr,
    SIGNED: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    latent, part, setup = tl.program_id(0) * BK + tl.arange(0, BK), tl.program_id(1), tl.program_id(2).to(tl.int64)
    inside, lse, winners = latent < K, lse + setup * T, winners + setup * T
    Ws = load_rows(W + setup * K * D, latent, K, 0, D, BD)
    bias = tl.load(b + setup * K + latent, mask=inside, other=float("-inf")).to(tl.float32)
    sums, of_s, of_y = tl.zeros((BK, BD), tl.float32), tl.zeros((BK,), tl.float32), tl.zeros((BK,), tl.float32)
    number = tl.zeros((BK,), tl.int32)
    for start in range(part * run, tl.minimum(part * run + run, T), BT):
        token = start + tl.arange(0, BT)
        xs = load_rows(x, token, T, 0, D, BD)
        # Tokens beyond the last: e^(… - inf) is 0.
        norm = tl.load(lse + token, mask=token < T, other=float("inf")) * 1.4426950408889634
        u = dot(Ws, tl.trans(xs), tl.zeros((BK, BT), tl.float32), PRECISION, WIDEN) + bias[:, None]
        y = tl.exp2(u * scale - norm[None, :])
        of_y += tl.sum(y, 1)
        number += tl.sum(((u > 0) & (token < T)[None, :]).to(tl.int32), 1)
        s = y
        if SIGNED:
            best = tl.load(winners + token, mask=token < T, other=0)
            s = tl.where(latent[:, None] == best[None, :], y, -y)
        of_s += tl.sum(s, 1)
        sums = dot(s, xs, sums, PRECISION, WIDEN)
    row = (part * tl.num_programs(2) + setup) * K
    store_rows(sx + row * D, sums, latent, K, D, BD)
    tl.store(s_sum + row + latent, of_s, mask=inside)
    tl.store(y_sum + row + latent, of_y, mask=inside)
    tl.store(fired + row + latent, number.to(tl.float32), mask=inside)
