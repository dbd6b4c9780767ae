"""The same sums as `triton_relu` and `triton_softhebb` for widths of which a tile does not fit a multiprocessor.

Tokens go in blocks whose [token, latent] fits the level-2 cache. One kernel computes a product with the latents, over
the width in pieces, and what follows it (ReLU and its counts, its derivative, SoftHebb's signal); plain matrix products
do the rest. So of each pass over [token, latent] only writing and reading its 16 or 32 bits remain.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, no_type_check

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hsae.kernels.triton_relu import Forwarded
from hsae.kernels.triton_tiles import (
    Gradients,
    Precision,
    Tiles,
    block_tokens,
    cdiv,
    drive,
    jit,
    joined,
    load_rows,
    tiles_for,
    tl,
    widen,
)

# What follows the product.
CODE, BACK, SIGNAL = 0, 1, 2
PIECE = 64


def forward(
    x: Float[Tensor, "token width"],
    W_enc: Float[Tensor, "setup latent width"],
    b_enc: Float[Tensor, "setup latent"],
    W_dec: Float[Tensor, "setup latent width"],
    b_dec: Float[Tensor, "setup width"] | None,
    temperature: float | None,
    *,
    precision: Precision,
    tiles: Tiles | None,
) -> Forwarded:
    """See `triton_relu.forward`."""
    parts: list[dict[str, Tensor]] = []
    setups, K = b_enc.shape
    for rows in x.split(block_tokens(setups, K, x.element_size())):
        made = _product(CODE, rows, W_enc, b_enc, precision, tiles, temperature=temperature)
        wanted = rows.expand(setups, -1, -1) if b_dec is None else (rows.float() - b_dec[:, None]).to(rows.dtype)
        with _precise(precision):
            # The difference is rounded once, after it was taken in float32.
            error = torch.baddbmm(wanted, made["out"], W_dec, beta=-1)
        full = error.float()
        part = {"error": error, "squared": full.square().sum(2), "b_dec": full.sum(1)[:, None]}
        part |= {"l1": made["size"].sum(1), "active": made["number"].sum(1, dtype=torch.int32)}
        if temperature is not None:
            best = made["top"].argmax(1, keepdim=True)
            part |= {"logsumexp": made["lse"].logsumexp(1), "winner": made["winner"].gather(1, best).squeeze(1)}
        parts.append(part)
    whole: dict[str, Any] = {name: torch.cat([part[name] for part in parts], 1) for name in parts[0]}
    return Forwarded(**whole | {"b_dec": whole["b_dec"].sum(1)})


def gradients(
    x: Float[Tensor, "token width"],
    error: Float[Tensor, "setup token width"],
    W_enc: Float[Tensor, "setup latent width"],
    b_enc: Float[Tensor, "setup latent"],
    W_dec: Float[Tensor, "setup latent width"],
    l1: Float[Tensor, "setup"],
    *,
    encoder: bool,
    decoder: bool,
    tied: bool,
    precision: Precision,
    tiles: Tiles | None,
) -> Gradients:
    """See `triton_relu.gradients`."""
    (setups, K, D), encoder, decoder = W_enc.shape, encoder or tied, decoder or tied
    to_enc, to_dec = (torch.zeros(setups, K, D, device=x.device) for _ in range(2))
    to_b, fired = (torch.zeros(setups, K, device=x.device) for _ in range(2))
    block = block_tokens(setups, K, x.element_size())
    for rows, wrong in zip(x.split(block), error.split(block, 1), strict=True):
        made = _product(CODE, rows, W_enc, b_enc, precision, tiles)
        code = made["out"]
        fired += made["fired"].sum(1)
        if decoder:
            to_dec += _sums(code, wrong, precision)
        if encoder:
            half = (l1 / 2)[:, None].expand(-1, K)
            back = _product(BACK, wrong, W_dec, half, precision, tiles, code=code)
            to_b += back["sums"].sum(1)
            to_enc += _sums(back["out"], rows.expand(setups, -1, -1), precision)
    scale = 2 / D
    if tied:
        return Gradients((to_enc + to_dec) * scale, to_b * scale, None, fired)
    return Gradients(
        to_enc * scale if encoder else None,
        to_b * scale if encoder else None,
        to_dec * scale if decoder else None,
        fired,
    )


def signals(
    x: Float[Tensor, "token width"],
    W: Float[Tensor, "setup latent width"],
    b: Float[Tensor, "setup latent"],
    temperature: float,
    signed: bool,
    logsumexp: Float[Tensor, "setup token"],
    winner: Int[Tensor, "setup token"],
    precision: Precision,
    tiles: Tiles | None,
) -> tuple[Float[Tensor, "setup latent width"], *tuple[Float[Tensor, "setup latent"], ...]]:
    """Σ s xᵀ, Σ s, Σ y and how often drives were above 0: see `triton_softhebb.statistics`."""
    setups, K, D = W.shape
    sx, s, y, fired = torch.zeros(setups, K, D, device=x.device), *torch.zeros(3, setups, K, device=x.device)
    block = block_tokens(setups, K, x.element_size())
    for rows, lse, best in zip(x.split(block), logsumexp.split(block, 1), winner.split(block, 1), strict=True):
        made = _product(
            SIGNAL, rows, W, b, precision, tiles, temperature=temperature, lse=lse, winner=best, signed=signed
        )
        sx += _sums(made["out"], rows.expand(setups, -1, -1), precision)
        s += made["sums"].sum(1)
        y += made["y"].sum(1)
        fired += made["fired"].sum(1)
    return sx, s, y, fired


@contextmanager
def _precise(precision: Precision) -> Iterator[None]:
    """PyTorch's float32 products: exact to rounding, unless TF32 was asked for."""
    there = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(there)


def _sums(
    left: Float[Tensor, "setup token latent"], right: Float[Tensor, "setup token width"], precision: Precision
) -> Float[Tensor, "setup latent width"]:
    """leftᵀ right in float32."""
    with _precise(precision):
        if left.dtype == torch.float32:
            return left.mT @ right
        if left.is_cuda:
            return torch.bmm(left.mT, right, out_dtype=torch.float32)  # pyright: ignore[reportCallIssue]
        return left.mT.float() @ right.float()


def _product(
    then: int,
    a: Float[Tensor, "*setup token width"],
    W: Float[Tensor, "setup latent width"],
    b: Float[Tensor, "setup latent"],
    precision: Precision,
    tiles: Tiles | None,
    *,
    temperature: float | None = None,
    signed: bool = False,
    code: Tensor | None = None,
    lse: Tensor | None = None,
    winner: Tensor | None = None,
) -> dict[str, Tensor]:
    """a Wᵀ + b and what follows: `out` [setup, token, latent], and sums with a row for each tile the other way."""
    tiles = tiles or tiles_for("wide", a, precision)
    (setups, K, D), T = W.shape, a.shape[-2]
    along_K, along_T = cdiv(K, tiles.latents), cdiv(T, tiles.tokens)
    make = lambda *shape, dtype=torch.float32: torch.empty(setups, *shape, dtype=dtype, device=a.device)  # noqa: E731
    out, sums, fired, y = make(T, K, dtype=a.dtype), *(make(along_T, K) for _ in range(3))
    rows = {name: make(along_K, T) for name in ("size", "top", "lse")}
    rows |= {name: make(along_K, T, dtype=torch.int32) for name in ("number", "winner")}
    a, code = a.contiguous(), out if code is None else code
    given_lse = rows["lse"] if lse is None else lse.contiguous()
    given_winner = rows["winner"] if winner is None else winner.contiguous()
    _tile[(along_K, along_T, setups)](
        a, W.contiguous(), b.contiguous(), code, given_lse, given_winner,
        out, sums, fired, y, rows["size"], rows["number"], rows["top"], rows["lse"], rows["winner"],
        T, K, float(temperature or 0.0), T * D if a.ndim == 3 else 0,
        D=D, BD=PIECE, BT=tiles.tokens, BK=tiles.latents, THEN=then, COMPETE=then == CODE and temperature is not None,
        SIGNED=signed, PRECISION=precision, WIDEN=widen(a), num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return {"out": out, "sums": sums, "fired": fired, "y": y, **rows}


@jit
@no_type_check
def _tile(
    a, W, b, code, given_lse, given_winner, out, sums, fired, y_sums, size, number, tops, lses, winners,
    T, K, temperature, a_setup,
    D: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, THEN: tl.constexpr, COMPETE: tl.constexpr,
    SIGNED: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    across, block, setup = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    token, latent = block * BT + tl.arange(0, BT), across * BK + tl.arange(0, BK)
    seen, inside, a = token < T, latent < K, a + setup * a_setup
    xs = load_rows(a, token, T, 0, D, BD)
    u = drive(a, xs, W + setup * K * D, b + setup * K, token, latent, T, K, D, BD, PRECISION, WIDEN)
    at = (setup * T + token.to(tl.int64))[:, None] * K + latent[None, :]
    both = seen[:, None] & inside[None, :]
    row, column = (setup * tl.num_programs(0) + across) * T + token, (setup * tl.num_programs(1) + block) * K + latent
    if THEN == 0:
        made = tl.where(seen[:, None], tl.maximum(u, 0.0, propagate_nan=tl.PropagateNan.ALL), 0.0)
        on = made > 0
        tl.store(size + row, tl.sum(made, 1), mask=seen)
        tl.store(number + row, tl.sum(on.to(tl.int32), 1), mask=seen)
        tl.store(fired + column, tl.sum(on.to(tl.float32), 0), mask=inside)
        if COMPETE:
            top, total = tl.full((BT,), float("-inf"), tl.float32), tl.zeros((BT,), tl.float32)
            top, total, winner = joined(top, total, tl.zeros((BT,), tl.int32), u, latent, temperature, K)
            tl.store(tops + row, top, mask=seen)
            tl.store(lses + row, temperature * top + tl.log(total), mask=seen)
            tl.store(winners + row, winner, mask=seen)
    elif THEN == 1:
        made = tl.where(tl.load(code + at, mask=both, other=0.0) > 0, u, 0.0)
        tl.store(sums + column, tl.sum(made, 0), mask=inside)
    else:
        norm = tl.load(given_lse + setup * T + token, mask=seen, other=float("inf"))
        y = tl.exp(u * temperature - norm[:, None])
        made = y
        if SIGNED:
            best = tl.load(given_winner + setup * T + token, mask=seen, other=0)
            made = tl.where(latent[None, :] == best[:, None], y, -y)
        tl.store(sums + column, tl.sum(made, 0), mask=inside)
        tl.store(y_sums + column, tl.sum(y, 0), mask=inside)
        tl.store(fired + column, tl.sum(((u > 0) & seen[:, None]).to(tl.float32), 0), mask=inside)
    tl.store(out + at, made.to(out.dtype.element_ty), mask=both)
