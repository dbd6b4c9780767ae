"""What follows a TopK code, by Triton: reconstruction and gradients from the few latents that each token uses.

`decode` gathers the rows of the decoder. For the gradients the (token, latent) pairs are sorted by latent and cut into
pieces of at most `PIECE` pairs of one latent: one program adds up a piece, then one program adds up a latent's pieces.
So a latent that fires on every token holds up nobody, and every sum has its fixed order. Nothing waits for the host.

Per token: error = W_decᵀ code + b_dec - x, loss = ‖error‖² / width. A leading axis `setup`, as in `triton_topk`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import no_type_check

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hsae.kernels.triton_tiles import Gradients, cdiv, jit, load_rows, padded, tl
from hsae.kernels.triton_topk import Chosen

PIECE, STEP = 64, 16


@dataclass(frozen=True)
class Decoded:
    """What `decode` leaves: reconstruction minus input, in x's dtype; each token's Σ error²; Σ error over tokens."""

    error: Float[Tensor, "setup token width"]
    squared: Float[Tensor, "setup token"]
    b_dec: Float[Tensor, "setup width"]


def _dense(chosen: Chosen, latents: int) -> Float[Tensor, "setup token latent"]:
    """The code with all its zeros."""
    code = chosen.code.new_zeros(*chosen.code.shape[:2], latents)
    return code.scatter_add_(2, chosen.latent.long(), chosen.code)


def decode_reference(
    x: Float[Tensor, "token width"],
    chosen: Chosen,
    W_dec: Float[Tensor, "setup latent width"],
    b_dec: Float[Tensor, "setup width"] | None = None,
) -> Decoded:
    """What `decode` computes, plainly."""
    error = _dense(chosen, W_dec.shape[1]) @ W_dec - x
    error = error if b_dec is None else error + b_dec[:, None]
    return Decoded(error, error.square().sum(2), error.sum(1))


def gradients_reference(
    x: Float[Tensor, "token width"],
    error: Float[Tensor, "setup token width"],
    chosen: Chosen,
    W_dec: Float[Tensor, "setup latent width"],
    tied: bool = False,
) -> Gradients:
    """What `gradients` computes, plainly."""
    code = _dense(chosen, W_dec.shape[1])
    back = torch.where(code > 0, error @ W_dec.mT, 0) * (2 / x.shape[1])
    to_enc, to_dec = torch.einsum("stk,td->skd", back, x), code.mT @ error * (2 / x.shape[1])
    fired = (code > 0).sum(1).float()
    return Gradients(to_enc + to_dec if tied else to_enc, back.sum(1), None if tied else to_dec, fired)


def decode(
    x: Float[Tensor, "token width"],
    chosen: Chosen,
    W_dec: Float[Tensor, "setup latent width"],
    b_dec: Float[Tensor, "setup width"] | None = None,
) -> Decoded:
    """Reconstruction error of a TopK code.

    Args:
        x: activations, centred.
        chosen: of `triton_topk.choose`.
        W_dec: the decoder's rows, in x's dtype.
        b_dec: its bias, float32, if it has one.
    """
    (setups, K, D), T, k = W_dec.shape, len(x), chosen.latent.shape[2]
    BD, BT = min(128, padded(D)), 16
    across, along = cdiv(D, BD), cdiv(T, BT)
    error = torch.empty(setups, T, D, dtype=x.dtype, device=x.device)
    squared = torch.empty(setups, across, T, dtype=torch.float32, device=x.device)
    sums = torch.empty(setups, along, D, dtype=torch.float32, device=x.device)
    _decode[(along, across, setups)](
        x.contiguous(), chosen.latent, chosen.code, W_dec.contiguous(),
        squared if b_dec is None else b_dec.contiguous(), error, squared, sums, T, K, k,
        D=D, BD=BD, BT=BT, BIAS=b_dec is not None, num_warps=4,
    )  # fmt: skip
    return Decoded(error, squared.sum(1), sums.sum(1))


def gradients(
    x: Float[Tensor, "token width"],
    error: Float[Tensor, "setup token width"],
    chosen: Chosen,
    W_dec: Float[Tensor, "setup latent width"],
    tied: bool = False,
) -> Gradients:
    """The loss' gradients summed over tokens, and how often latents fired.

    Args:
        x: activations, centred.
        error: of `decode`.
        chosen: of `triton_topk.choose`.
        W_dec: the decoder's rows, in x's dtype.
        tied: one matrix is both: the gradient of both sides is one sum.
    """
    (setups, K, D), T, k = W_dec.shape, len(x), chosen.latent.shape[2]
    x, error = x.contiguous(), error.contiguous()
    BD, BT, pairs = min(128, padded(D)), 16, setups * T * k
    back = torch.empty_like(chosen.code)
    _back[(cdiv(T, BT), setups)](
        error, chosen.latent, chosen.code, W_dec.contiguous(), back, T, K, k, D=D, BD=BD, BT=BT, num_warps=4
    )
    order, ends, first = _pieces(chosen, K)
    most = cdiv(pairs, PIECE) + setups * K
    make = lambda rows, *shape: torch.empty(rows, *shape, dtype=torch.float32, device=x.device)  # noqa: E731
    part_enc, part_dec, part_b = make(most, D), make(1 if tied else most, D), make(most)
    owner = torch.searchsorted(
        first, torch.arange(most, device=x.device, dtype=first.dtype), right=True, out_int32=True
    )
    _piece[(most, cdiv(D, BD))](
        x, error, order, ends, first, owner, chosen.code, back, part_enc, part_dec, part_b,
        T, k, setups * K, D=D, BD=BD, PIECE=PIECE, STEP=STEP, TIED=tied, num_warps=2,
    )  # fmt: skip
    to_enc, to_dec, to_b = make(setups * K, D), make(1 if tied else setups * K, D), make(setups * K)
    _join[(setups * K, cdiv(D, BD))](
        first, part_enc, part_dec, part_b, to_enc, to_dec, to_b, D=D, BD=BD, STEP=STEP, TIED=tied, num_warps=2
    )
    shape = (setups, K, D)
    fired = (ends[1:] - ends[:-1]).float().view(setups, K)
    return Gradients(to_enc.view(shape), to_b.view(setups, K), None if tied else to_dec.view(shape), fired)


def _pieces(chosen: Chosen, latents: int) -> tuple[Int[Tensor, "pair"], Int[Tensor, "ends"], Int[Tensor, "ends"]]:
    """The pairs in the order of latents; where in it each latent's begin; the first piece of each; ends included."""
    setups = len(chosen.latent)
    base = torch.arange(setups, device=chosen.latent.device, dtype=torch.int32)[:, None, None] * latents
    # Unused places go behind the last latent.
    owners = torch.where(chosen.code != 0, chosen.latent + base, setups * latents).flatten()
    ordered, order = owners.sort(stable=True)
    every = torch.arange(setups * latents + 1, device=order.device, dtype=torch.int32)
    ends = torch.searchsorted(ordered, every, out_int32=True)
    pieces = (ends[1:] - ends[:-1] + PIECE - 1) // PIECE
    return order, ends, torch.nn.functional.pad(pieces.cumsum(0), (1, 0)).int()


@jit
@no_type_check
def _decode(
    x, latents, code, W_dec, b_dec, error, squared, sums, T, K, k,
    D: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    block, across, setup = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    token, first = block * BT + tl.arange(0, BT), across * BD
    column, seen = first + tl.arange(0, BD), token < T
    at = (setup * T + token) * k
    made = tl.zeros((BT, BD), tl.float32)
    for place in range(k):
        latent = tl.load(latents + at + place, mask=seen, other=0)
        value = tl.load(code + at + place, mask=seen, other=0.0)
        made += value[:, None] * load_rows(W_dec + setup * K * D, latent, K, first, D, BD).to(tl.float32)
    if BIAS:
        made += tl.load(b_dec + setup * D + column, mask=column < D, other=0.0).to(tl.float32)[None, :]
    both = seen[:, None] & (column < D)[None, :]
    left = tl.where(both, made - load_rows(x, token, T, first, D, BD).to(tl.float32), 0.0)
    tl.store(error + (setup * T + token)[:, None] * D + column[None, :], left.to(error.dtype.element_ty), mask=both)
    tl.store(squared + (setup * tl.num_programs(1) + across) * T + token, tl.sum(left * left, 1), mask=seen)
    tl.store(sums + (setup * tl.num_programs(0) + block) * D + column, tl.sum(left, 0), mask=column < D)


@jit
@no_type_check
def _back(
    error, latents, code, W_dec, back, T, K, k, D: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr
):  # fmt: skip
    token, setup = tl.program_id(0) * BT + tl.arange(0, BT), tl.program_id(1).to(tl.int64)
    seen, at = token < T, (setup * T + token) * k
    es = load_rows(error + setup * T * D, token, T, 0, D, BD).to(tl.float32)
    for place in range(k):
        latent = tl.load(latents + at + place, mask=seen, other=0)
        value = tl.load(code + at + place, mask=seen, other=0.0)
        total = tl.sum(es * load_rows(W_dec + setup * K * D, latent, K, 0, D, BD).to(tl.float32), 1)
        for first in range(BD, D, BD):
            more = load_rows(error + setup * T * D, token, T, first, D, BD).to(tl.float32)
            total += tl.sum(more * load_rows(W_dec + setup * K * D, latent, K, first, D, BD).to(tl.float32), 1)
        tl.store(back + at + place, tl.where(value != 0, total * (2.0 / D), 0.0), mask=seen)


@jit
@no_type_check
def _piece(
    x, error, order, ends, first, owner, code, back, part_enc, part_dec, part_b, T, k, rows,
    D: tl.constexpr, BD: tl.constexpr, PIECE: tl.constexpr, STEP: tl.constexpr, TIED: tl.constexpr,
):  # fmt: skip
    piece, start = tl.program_id(0), tl.program_id(1) * BD
    column, latent = start + tl.arange(0, BD), tl.load(owner + piece) - 1
    # Beyond the last piece the owner is the end.
    if latent < rows:
        begin = tl.load(ends + latent) + (piece - tl.load(first + latent)) * PIECE
        end = tl.minimum(begin + PIECE, tl.load(ends + latent + 1))
        enc, dec, bias = tl.zeros((BD,), tl.float32), tl.zeros((BD,), tl.float32), 0.0
        for at in range(begin, end, STEP):
            place = at + tl.arange(0, STEP)
            pair = tl.load(order + place, mask=place < end, other=0)
            value = tl.load(code + pair, mask=place < end, other=0.0)
            signal = tl.load(back + pair, mask=place < end, other=0.0)
            row = pair // k
            xs = load_rows(x, row % T, T, start, D, BD).to(tl.float32)
            es = load_rows(error, row, row + 1, start, D, BD).to(tl.float32)
            enc += tl.sum(signal[:, None] * xs, 0)
            dec += tl.sum(value[:, None] * es, 0)
            bias += tl.sum(signal, 0)
        at, inside = piece.to(tl.int64) * D + column, column < D
        if TIED:
            tl.store(part_enc + at, enc + dec * (2.0 / D), mask=inside)
        else:
            tl.store(part_enc + at, enc, mask=inside)
            tl.store(part_dec + at, dec * (2.0 / D), mask=inside)
        if start == 0:
            tl.store(part_b + piece, bias)


@jit
@no_type_check
def _join(
    first, part_enc, part_dec, part_b, to_enc, to_dec, to_b,
    D: tl.constexpr, BD: tl.constexpr, STEP: tl.constexpr, TIED: tl.constexpr,
):  # fmt: skip
    latent, start = tl.program_id(0), tl.program_id(1) * BD
    begin, end, column = tl.load(first + latent), tl.load(first + latent + 1), start + tl.arange(0, BD)
    enc, dec, bias = tl.zeros((BD,), tl.float32), tl.zeros((BD,), tl.float32), 0.0
    for at in range(begin, end, STEP):
        piece = at + tl.arange(0, STEP)
        enc += tl.sum(load_rows(part_enc, piece, end, start, D, BD), 0)
        bias += tl.sum(tl.load(part_b + piece, mask=piece < end, other=0.0), 0)
        if not TIED:
            dec += tl.sum(load_rows(part_dec, piece, end, start, D, BD), 0)
    at = latent.to(tl.int64) * D + column
    tl.store(to_enc + at, enc, mask=column < D)
    if not TIED:
        tl.store(to_dec + at, dec, mask=column < D)
    if start == 0:
        tl.store(to_b + latent, bias)
