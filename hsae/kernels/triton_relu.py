"""ReLU SAE, forward and backward, by Triton: the tiling of FlashAttention (Dao et al., arXiv 2205.14135).

A token's x is the query, rows of W_enc are the keys, rows of W_dec the values, and ReLU stands where the softmax was.
So [token, latent] never leaves the chip: `forward` walks over latents for a tile of tokens, `gradients` over tokens for
a tile of latents and computes the code anew. Sums are added in a fixed order, without atomics. Widths above 256, of
which a tile of gradients does not fit the registers, take `triton_wide` instead.

Per token, with u = W_enc x + b_enc, code = relu(u), error = W_decᵀ code + b_dec - x:

    loss = ‖error‖² / width + l1 · Σ code / width

A leading axis `setup`: weights of several SAEs that see the same x. Products are of x's dtype, their sums of float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import no_type_check

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hsae.kernels.triton_tiles import (
    Gradients,
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
class Forwarded:
    """What a forward pass leaves.

    Attributes:
        error: reconstruction minus input, in x's dtype.
        squared: each token's Σ error².
        l1: each token's Σ code.
        active: each token's number of active latents.
        b_dec: Σ error over tokens: the gradient for the decoder's bias is 2 / width of it.
        logsumexp: of temperature · u over latents; None where no temperature was given.
        winner: the latent with the highest u, the first of several; None likewise.
    """

    error: Float[Tensor, "setup token width"]
    squared: Float[Tensor, "setup token"]
    l1: Float[Tensor, "setup token"]
    active: Int[Tensor, "setup token"]
    b_dec: Float[Tensor, "setup width"]
    logsumexp: Float[Tensor, "setup token"] | None = None
    winner: Int[Tensor, "setup token"] | None = None


def forward_reference(
    x: Float[Tensor, "token width"],
    W_enc: Float[Tensor, "setup latent width"],
    b_enc: Float[Tensor, "setup latent"],
    W_dec: Float[Tensor, "setup latent width"],
    b_dec: Float[Tensor, "setup width"] | None = None,
    temperature: float | None = None,
) -> Forwarded:
    """What `forward` computes, plainly."""
    u = torch.einsum("td,skd->stk", x, W_enc) + b_enc[:, None]
    code = u.relu()
    error = code @ W_dec - x
    error = error if b_dec is None else error + b_dec[:, None]
    done = Forwarded(error, error.square().sum(2), code.sum(2), (code > 0).sum(2).int(), error.sum(1))
    if temperature is None:
        return done
    return replace(done, logsumexp=(temperature * u).logsumexp(2), winner=u.argmax(2).int())


def gradients_reference(
    x: Float[Tensor, "token width"],
    error: Float[Tensor, "setup token width"],
    W_enc: Float[Tensor, "setup latent width"],
    b_enc: Float[Tensor, "setup latent"],
    W_dec: Float[Tensor, "setup latent width"],
    l1: Float[Tensor, "setup"],
    *,
    encoder: bool = True,
    decoder: bool = True,
    tied: bool = False,
) -> Gradients:
    """What `gradients` computes, plainly."""
    width = x.shape[1]
    code = (torch.einsum("td,skd->stk", x, W_enc) + b_enc[:, None]).relu()
    back = torch.where(code > 0, error @ W_dec.mT + l1[:, None, None] / 2, 0) * (2 / width)
    to_dec = code.mT @ error * (2 / width)
    to_enc = torch.einsum("stk,td->skd", back, x)
    fired = (code > 0).sum(1).float()
    if tied:
        return Gradients(to_enc + to_dec, back.sum(1), None, fired)
    return Gradients(to_enc if encoder else None, back.sum(1) if encoder else None, to_dec if decoder else None, fired)


def fused(x: Float[Tensor, "token width"]) -> bool:
    """Whether `forward` and `gradients` can take these activations; else the references serve."""
    return usable(x)


def forward(
    x: Float[Tensor, "token width"],
    W_enc: Float[Tensor, "setup latent width"],
    b_enc: Float[Tensor, "setup latent"],
    W_dec: Float[Tensor, "setup latent width"],
    b_dec: Float[Tensor, "setup width"] | None = None,
    temperature: float | None = None,
    *,
    precision: Precision = "ieee",
    tiles: Tiles | None = None,
) -> Forwarded:
    """Reconstruction error and what metrics need, in one pass; with a temperature, also what SoftHebb needs.

    Args:
        x: activations, centred.
        W_enc: in x's dtype, like `W_dec`, which may be the same tensor.
        b_enc: the encoder's bias, float32 like `b_dec`.
        W_dec: the decoder's rows.
        b_dec: the decoder's bias, if it has one.
        temperature: of SoftHebb's softmax over latents.
        precision: of float32 products.
        tiles: how to cut the work; those tuned for this width by default.
    """
    if not narrow(x, precision):
        from hsae.kernels import triton_wide

        return triton_wide.forward(x, W_enc, b_enc, W_dec, b_dec, temperature, precision=precision, tiles=tiles)
    tiles = tiles or tiles_for("relu.forward", x, precision)
    (setups, K, D), T = W_enc.shape, len(x)
    blocks, compete = cdiv(T, tiles.tokens), temperature is not None
    make = lambda *shape, dtype=torch.float32: torch.empty(setups, *shape, dtype=dtype, device=x.device)  # noqa: E731
    error, squared, l1, active = make(T, D, dtype=x.dtype), make(T), make(T), make(T, dtype=torch.int32)
    sums, lse, winner = make(blocks, D), make(T), make(T, dtype=torch.int32)
    W_enc, W_dec, b_enc = W_enc.contiguous(), W_dec.contiguous(), b_enc.contiguous()
    _forward[(blocks, setups)](
        x.contiguous(), W_enc, b_enc, W_dec, b_enc if b_dec is None else b_dec.contiguous(),
        error, squared, l1, active, sums, lse, winner, T, K, float(temperature or 0.0),
        D=D, BD=padded(D), BT=tiles.tokens, BK=tiles.latents, BIAS=b_dec is not None, COMPETE=compete,
        PRECISION=precision, WIDEN=widen(x), num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    done = Forwarded(error, squared, l1, active, sums.sum(1))
    return replace(done, logsumexp=lse, winner=winner) if compete else done


def gradients(
    x: Float[Tensor, "token width"],
    error: Float[Tensor, "setup token width"],
    W_enc: Float[Tensor, "setup latent width"],
    b_enc: Float[Tensor, "setup latent"],
    W_dec: Float[Tensor, "setup latent width"],
    l1: Float[Tensor, "setup"],
    *,
    encoder: bool = True,
    decoder: bool = True,
    tied: bool = False,
    precision: Precision = "ieee",
    tiles: Tiles | None = None,
) -> Gradients:
    """The loss' gradients and how often latents fired.

    Args:
        x: activations, centred.
        error: of `forward`.
        W_enc: in x's dtype, like `W_dec`.
        b_enc: the encoder's bias.
        W_dec: the decoder's rows.
        l1: the penalty's weight, float32, on x's device.
        encoder: compute those of the encoder.
        decoder: compute that of the decoder.
        tied: one matrix is both; `W_dec` is not looked at, and the gradient of both sides is one sum.
        precision: of float32 products.
        tiles: how to cut the work.
    """
    if not narrow(x, precision):
        from hsae.kernels import triton_wide

        return triton_wide.gradients(
            x, error, W_enc, b_enc, W_enc if tied else W_dec, l1,
            encoder=encoder, decoder=decoder, tied=tied, precision=precision, tiles=tiles,
        )  # fmt: skip
    tiles = tiles or tiles_for("relu.gradients", x, precision)
    (setups, K, D), T = W_enc.shape, len(x)
    encoder, decoder = encoder or tied, decoder or tied
    blocks = cdiv(K, tiles.latents)
    runs = splits(blocks * setups, T, tiles.tokens, x.device)
    # Whole tiles to each run.
    run = cdiv(cdiv(T, tiles.tokens), runs) * tiles.tokens
    make = lambda *shape: torch.empty(runs, setups, K, *shape, dtype=torch.float32, device=x.device)  # noqa: E731
    to_enc, to_dec, to_b, fired = make(D), make(1 if tied or not decoder else D), make(), make()
    _gradients[(blocks, runs, setups)](
        x.contiguous(), error.contiguous(), W_enc.contiguous(), b_enc.contiguous(), W_dec.contiguous(), l1,
        to_enc, to_b, to_dec, fired, T, K, run,
        D=D, BD=padded(D), BT=tiles.tokens, BK=tiles.latents, ENC=encoder, DEC=decoder, TIED=tied,
        PRECISION=precision, WIDEN=widen(x), num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return Gradients(
        to_enc.sum(0) if encoder else None,
        to_b.sum(0) if encoder else None,
        to_dec.sum(0) if decoder and not tied else None,
        fired.sum(0),
    )


@jit
@no_type_check
def _forward(
    x, W_enc, b_enc, W_dec, b_dec, error, squared, l1, active, sums, lse, winners, T, K, temperature,
    D: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, BIAS: tl.constexpr, COMPETE: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    block, setup = tl.program_id(0), tl.program_id(1).to(tl.int64)
    token, column = block * BT + tl.arange(0, BT), tl.arange(0, BD)
    W_enc, W_dec, b_enc, error = W_enc + setup * K * D, W_dec + setup * K * D, b_enc + setup * K, error + setup * T * D
    xs = load_rows(x, token, T, 0, D, BD)
    made = tl.zeros((BT, BD), tl.float32)
    size, number = tl.zeros((BT,), tl.float32), tl.zeros((BT,), tl.int32)
    top, total = tl.full((BT,), float("-inf"), tl.float32), tl.zeros((BT,), tl.float32)
    winner = tl.zeros((BT,), tl.int32)
    for start in range(0, K, BK):
        latent = start + tl.arange(0, BK)
        u = drive(x, xs, W_enc, b_enc, token, latent, T, K, D, BD, PRECISION, WIDEN)
        # A NaN stays one, so that divergence shows.
        code = tl.maximum(u, 0.0, propagate_nan=tl.PropagateNan.ALL)
        size += tl.sum(code, 1)
        number += tl.sum((code > 0).to(tl.int32), 1)
        made = dot(code, load_rows(W_dec, latent, K, 0, D, BD), made, PRECISION, WIDEN)
        if COMPETE:
            top, total, winner = joined(top, total, winner, u, latent, temperature, K)
    if BIAS:
        made += tl.load(b_dec + setup * D + column, mask=column < D, other=0.0).to(tl.float32)[None, :]
    left = tl.where((token < T)[:, None], made - xs.to(tl.float32), 0.0)
    store_rows(error, left, token, T, D, BD)
    at, seen = setup * T + token, token < T
    tl.store(squared + at, tl.sum(left * left, 1), mask=seen)
    tl.store(l1 + at, size, mask=seen)
    tl.store(active + at, number, mask=seen)
    tl.store(sums + (setup * tl.num_programs(0) + block) * D + column, tl.sum(left, 0), mask=column < D)
    if COMPETE:
        tl.store(lse + at, temperature * top + tl.log(total), mask=seen)
        tl.store(winners + at, winner, mask=seen)


@jit
@no_type_check
def _gradients(
    x, error, W_enc, b_enc, W_dec, l1, to_enc, to_b, to_dec, fired, T, K, run,
    D: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr,
    ENC: tl.constexpr, DEC: tl.constexpr, TIED: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    latent, part, setup = tl.program_id(0) * BK + tl.arange(0, BK), tl.program_id(1), tl.program_id(2).to(tl.int64)
    inside, error = latent < K, error + setup * T * D
    We = load_rows(W_enc + setup * K * D, latent, K, 0, D, BD)
    b = tl.load(b_enc + setup * K + latent, mask=inside, other=float("-inf")).to(tl.float32)
    Wd = We
    if ENC and not TIED:
        Wd = load_rows(W_dec + setup * K * D, latent, K, 0, D, BD)
    half = tl.load(l1 + setup).to(tl.float32) / 2
    enc, dec = tl.zeros((BK, BD), tl.float32), tl.zeros((BK, BD), tl.float32)
    sums, number = tl.zeros((BK,), tl.float32), tl.zeros((BK,), tl.int32)
    for start in range(part * run, tl.minimum(part * run + run, T), BT):
        token = start + tl.arange(0, BT)
        xs, es = load_rows(x, token, T, 0, D, BD), load_rows(error, token, T, 0, D, BD)
        u = dot(We, tl.trans(xs), tl.zeros((BK, BT), tl.float32), PRECISION, WIDEN) + b[:, None]
        code = tl.where((token < T)[None, :], tl.maximum(u, 0.0), 0.0)
        on = code > 0
        number += tl.sum(on.to(tl.int32), 1)
        if DEC:
            if TIED:
                enc = dot(code, es, enc, PRECISION, WIDEN)
            else:
                dec = dot(code, es, dec, PRECISION, WIDEN)
        if ENC:
            # The factor 2 / width comes last: float16 could not hold the products.
            back = dot(Wd, tl.trans(es), tl.zeros((BK, BT), tl.float32), PRECISION, WIDEN) + half
            back = tl.where(on, back, 0.0)
            sums += tl.sum(back, 1)
            enc = dot(back, xs, enc, PRECISION, WIDEN)
    row, scale = (part * tl.num_programs(2) + setup) * K, 2.0 / D
    tl.store(fired + row + latent, number.to(tl.float32), mask=inside)
    if ENC:
        store_rows(to_enc + row * D, enc * scale, latent, K, D, BD)
        tl.store(to_b + row + latent, sums * scale, mask=inside)
    if DEC and not TIED:
        store_rows(to_dec + row * D, dec * scale, latent, K, D, BD)
