"""Where the tests intervene: a small language model, stores of it, and SAEs with known weights, made anew each time."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny_lm import make_model, make_text
from torch import Tensor

from hsae.errors import UserError
from hsae.harvesting import HarvestConfig, harvest
from hsae.intervene.site import Site
from hsae.record import Result, Row
from hsae.run import RunWriter
from hsae.sae import SAE, Variant
from hsae.sae.relu import ReLU
from hsae.sae.topk import TopK
from hsae.store import Store

HOOK = "blocks.2.hook_resid_pre"
WIDTH, CONTEXT, LATENTS, SEQUENCES = 16, 32, 24, 20
DEAD = 5
"""a latent that never fires"""
PROMPT = "the sun and the dog"


def make_home(home: Path) -> Path:
    """A model, three stores and a run on each: packed; padded, with positions that do not count; opened by bos."""
    make_model(home / "model")
    (home / "text.txt").write_text("<|endoftext|>".join(text[: 90 + 5 * i] for i, text in enumerate(make_text(24, 60))))
    common = {"model": str(home / "model"), "data": (str(home / "text.txt"),), "hooks": (HOOK,), "context": CONTEXT}
    common["tokens"] = SEQUENCES * CONTEXT
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HSAE_CACHE", str(home / "cache"))
        for config in (
            HarvestConfig(**common, name="packed"),
            HarvestConfig(**common, name="documents", pack="documents", exclude_first=2, exclude_special=True),
            HarvestConfig(**common, name="opened", separator="bos"),
        ):
            harvest(config, Console(quiet=True))
            make_run(Store.open(config.name))
    return home


def make_run(store: Store) -> None:
    """SAEs with random weights, at a scale of their own, as long as activations are wide."""
    record = store.manifest.hooks[HOOK]
    scale = 1 / math.sqrt(sum(record.second_moment) / WIDTH)

    def sae(variant: Variant, tied: bool = False) -> SAE:
        generator = torch.Generator().manual_seed(3)
        W_enc, W_dec = (torch.randn(LATENTS, WIDTH, generator=generator) / math.sqrt(WIDTH) for _ in range(2))
        b_enc = torch.linspace(-1.2, -0.1, LATENTS)
        b_enc[DEAD] = -1e3
        return SAE(W_enc, b_enc, W_enc if tied else W_dec, torch.randn(WIDTH, generator=generator), variant, scale)

    saes = {("bp", 0): sae(ReLU()), ("tied", 0): sae(ReLU(), tied=True), ("top", 0): sae(TopK(k=3))}
    setups: dict[str, Any] = {
        "bp": {"decoder": "backprop"},
        "tied": {"tied": True},
        "top": {"decoder": "backprop", "sae": {"kind": "topk", "k": 3}},
    }
    writer = RunWriter(store.folder.parents[1] / "runs" / store.name, {"held_out": 6 * CONTEXT, "setup": setups})
    result = Result(
        version=1,
        store=store.name,
        store_fingerprint=store.manifest.fingerprint,
        model=store.manifest.model,
        hook=HOOK,
        width=WIDTH,
        latents=LATENTS,
        scale=scale,
        folded=False,
        steps=5,
        tokens=100,
        held_out=6 * CONTEXT,
        dead_window=1000,
        rows=tuple(Row(setup, seed) for setup, seed in saes),
    )
    writer.finish(saes, result)


def last(site: Site, sequences: int) -> tuple[Tensor, Tensor]:
    """Tokens of the store's last sequences, and the positions that count."""
    chunk = next(site.store.chunks(HOOK, sequences, SEQUENCES - sequences))
    return chunk.tokens.long(), chunk.keep


def log_softmax(logits: Tensor) -> Tensor:
    return logits.double().log_softmax(-1)


def refused(call: Callable[[], Any]) -> str:
    """The one line of a refusal."""
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def by_hand(site: Site, ids: Tensor, keep: Tensor, latents: tuple[int, ...], set_to: float = 0.0) -> SimpleNamespace:
    """An ablation by its definition: the activation rebuilt, every prediction compared."""
    x = site.lm.tap(ids, (HOOK,))[HOOK]
    code = site.sae.encode(x) * keep[..., None]
    new = x.clone()
    for latent in latents:
        fires = code[..., latent] > 0
        new[fires] += (set_to - code[..., latent][fires])[:, None] * site.sae.W_dec[latent] / site.sae.scale
    before, after = (
        log_softmax(logits)[:, :-1] for logits in (site.lm.logits(ids), site.lm.logits(ids, HOOK, lambda _: new))
    )
    gain = (after - before).gather(2, ids[:, 1:, None])[..., 0]
    active = code[..., list(latents)]
    return SimpleNamespace(
        fires=(active > 0).any(-1),
        activation=float(active[active > 0].mean()),
        before=before,
        after=after,
        gain=gain,
        kl=(before.exp() * (before - after)).sum(-1),
    )
