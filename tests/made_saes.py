"""SAEs made by hand, and runs of them, whose comparison is known."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hsae.record import Result, Row
from hsae.run import RunWriter
from hsae.sae import SAE
from hsae.sae.relu import ReLU
from hsae.store import Store

if TYPE_CHECKING:
    from hsae.compare.pair import Comparison


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sae_of(W: Tensor, W_dec: Tensor | None = None, bias: float | Tensor = 0.0, **more: Any) -> SAE:
    b_enc = torch.zeros(len(W)) + bias
    return SAE(W, b_enc, W if W_dec is None else W_dec, torch.zeros(W.shape[1]), more.pop("variant", ReLU()), **more)


def compared(a: SAE, b: SAE, rows: Tensor, **more: Any) -> Comparison:
    from hsae.compare.pair import Side, compare_saes

    return compare_saes(Side.of("a", a, rows), Side.of("b", b, rows), rows, **more)


def make_run(
    store: Store,
    name: str,
    saes: dict[tuple[str, int], SAE],
    diverged: tuple[str, ...] = (),
    rows: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """A run of SAEs made by hand, whose table says nothing but what `rows` says of all."""
    setups = {setup: {"decoder": "backprop"} for setup in [*(setup for setup, _ in saes), *diverged]}
    writer = RunWriter(store.folder.parents[1] / "runs" / name, {"held_out": 10 * 32, "setup": setups})
    table = [Row(*key, **(rows or {})) for key in saes] + [Row(setup, 0, diverged="at step 3") for setup in diverged]
    first = next(iter(saes.values()))
    result = Result(
        version=1,
        store=store.name,
        store_fingerprint=store.manifest.fingerprint,
        model=store.manifest.model,
        hook="hook",
        width=first.width,
        latents=first.latents,
        scale=first.scale,
        folded=False,
        steps=5,
        tokens=100,
        held_out=320,
        dead_window=1000,
        rows=tuple(table),
    )
    # Tensors of their own, since a file holds each once.
    whole = {
        key: dataclasses.replace(sae, **{n: getattr(sae, n).clone() for n in ("W_enc", "b_enc", "W_dec", "b_dec")})
        for key, sae in saes.items()
    }
    return writer.finish(whole, dataclasses.replace(result, **changes)).folder
