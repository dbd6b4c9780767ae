"""Runs with weights made by hand, and stores for them: what export and import are tried on, without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hsae import config
from hsae.record import Result, Row
from hsae.run import Run, RunWriter
from hsae.sae import SAE
from hsae.setup import Setup
from hsae.store import Store, StoreWriter

HOOK = "blocks.4.hook_resid_pre"
MODEL = {"name": "owner/tiny", "fingerprint": "test", "architecture": "LlamaForCausalLM", "layers": 6, "width": 5}
BACKPROP = {"encoder": "backprop", "decoder": "backprop"}
SETUPS: dict[str, dict[str, Any]] = {
    "relu": BACKPROP,
    "tied": {"encoder": "softhebb", "tied": True},
    "unit": BACKPROP | {"decoder_norm": "unit", "decoder_bias": True},
    "topk": BACKPROP | {"sae": {"kind": "topk", "k": 3}},
    "batchtopk": BACKPROP | {"sae": {"kind": "batchtopk", "k": 2.5}},
    "matryoshka": BACKPROP | {"sae": {"kind": "matryoshka", "k": 3, "shares": [0.25, 1.0]}},
    "jumprelu": BACKPROP | {"sae": "jumprelu"},
    "gated": BACKPROP | {"sae": "gated"},
}


def make_sae(setup: Setup, width: int = 5, latents: int = 8, scale: float = 1.0) -> SAE:
    """An SAE of a setup with weights of no particular kind, the same each time; every bias and threshold is in use."""
    generator = torch.Generator().manual_seed(latents * width)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    W_enc, W_dec = draw(latents, width), draw(latents, width) * 0.7
    if setup.decoder_norm == "unit":
        W_dec = torch.nn.functional.normalize(W_dec, dim=1)
    own = {
        "threshold": torch.tensor(0.3),
        "log_threshold": draw(latents) * 0.3 - 0.5,
        "log_gain": draw(latents) * 0.3,
        "magnitude_bias": draw(latents) * 0.2,
    }
    needed = setup.variant.inference(setup.variant.parameters(latents))
    parameters = {name: own[name] for name in needed}
    W_dec = W_enc if setup.tied else W_dec
    return SAE(W_enc, draw(latents) * 0.3, W_dec, draw(width), setup.variant, scale, parameters)


def make_store(name: str = "shared", hook: str = HOOK, width: int = 5, **harvest: Any) -> Store:
    """A store of 24 sequences of 16 tokens. The first position of each sequence does not count."""
    from hsae.files import cache_root

    generator = torch.Generator().manual_seed(3)
    writer = StoreWriter(cache_root() / "activations" / name, {"test": name}, "fp32")
    keep = torch.ones(12, 16, dtype=torch.bool)
    keep[:, 0] = False
    for shard in range(2):
        x = torch.randn(12, 16, width, generator=generator) * 2
        tokens = torch.randint(0, 40, (12, 16), generator=generator)
        writer.write(shard, tokens, {hook: x}, {hook: keep}, {hook: {"first": 12}})
    tables = {"model": MODEL, "tokenizer": {}, "text": {"data": ["owner/stories", "/home/me/more.txt"]}}
    writer.finish(
        shard_sequences=12, context=16, harvest={"exclude_first": 1, "prepend_bos": True, **harvest}, **tables
    )
    return Store.open(name)


def make_run(
    name: str = "made",
    setups: Mapping[str, Mapping[str, Any]] | Sequence[str] = ("relu", "topk"),
    scale: float = 1.0,
    folded: bool = False,
    diverged: Sequence[str] = (),
    store: Store | None = None,
    saes: Mapping[str, SAE] | None = None,
    hook: str = HOOK,
) -> Run:
    """A finished run of setups, as `hsae train` leaves it: of `SETUPS` by name, or as tables."""
    from hsae.files import cache_root

    tables = setups if isinstance(setups, Mapping) else {key: SETUPS[key] for key in setups}
    built = {key: config.build(Setup, table, "test") for key, table in tables.items()}
    made = {
        key: (saes or {}).get(key) or make_sae(setup, scale=1.0 if folded else scale) for key, setup in built.items()
    }
    first = next(iter(made.values()))
    rows = tuple(
        Row(key, 0, diverged="at step 3: the loss is nan" if key in diverged else None, l0=2.5, evr=0.9) for key in made
    )
    folder = cache_root() / "runs" / name
    setup_table = {key: config.table(setup) for key, setup in built.items()}
    resolved = {"name": name, "hook": hook, "setups": list(made), "held_out": 32, "setup": setup_table}
    result = Result(
        version=1,
        store=store.name if store else "gone",
        store_fingerprint=store.manifest.fingerprint if store else "",
        model=MODEL,
        hook=hook,
        width=first.width,
        latents=first.latents,
        scale=scale,
        folded=folded,
        steps=10,
        tokens=1000,
        held_out=32,
        dead_window=100,
        rows=rows,
    )
    kept = {(key, 0): sae for key, sae in made.items() if key not in diverged}
    return RunWriter(Path(folder), resolved).finish(kept, result)
