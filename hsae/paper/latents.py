"""Tables 2 and 3 on our own stores: latents that read well, where they fire, and how much of that is one token."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hsae.evidence.survey import BEFORE, ROWS, Survey, cached_survey
from hsae.inspect.tokens import Pieces, visible
from hsae.progress import Bar
from hsae.run import Run
from hsae.sae import SAE
from hsae.store import Store

COUNT, CONTEXTS = 5, 3
"""latents for each setup, contexts for each latent"""


@dataclass(frozen=True)
class Latent:
    """A latent and where it fires.

    Attributes:
        rate: share of positions at which it fires.
        selectivity: share of its strongest contexts that peak on one token (`hsae.evidence.survey`).
        token: the token that it fires on most, and `share`: of its firings, those on that token.
        contexts: text around its strongest peaks, the firing token marked «so».
    """

    latent: int
    rate: float
    selectivity: float
    token: str
    share: float
    contexts: tuple[str, ...]


def readable(run: Run, setup: str, seed: int, store: Store, hook: str, bar: Bar) -> tuple[Latent, ...]:
    """The most selective latents of an SAE, each about another token. The bar counts the store's positions twice."""
    sae = run.sae(setup, seed)
    path = run.folder / "evidence" / f"{setup}-{seed}-{store.manifest.fingerprint}.safetensors"
    survey = cached_survey(path, sae, store, hook, bar.advance)
    chosen = _chosen(survey)
    uses = _uses(sae, store, hook, chosen, bar)
    pieces = Pieces(store.tokenizer)
    found = []
    for latent, counts in zip(chosen, uses, strict=True):
        token = int(counts.argmax())
        found.append(
            Latent(
                latent=latent,
                rate=float(survey.rate[latent]),
                selectivity=float(survey.selectivity[latent]),
                token=visible(pieces.one(token)),
                share=float(counts[token] / counts.sum().clamp(min=1)),
                contexts=tuple(_contexts(survey, latent, pieces)),
            )
        )
    return tuple(found)


def _chosen(survey: Survey) -> list[int]:
    """The most selective latents; of those whose strongest peak is on one and the same token, the first."""
    ranked = survey.most_selective(len(survey.firings))
    seen: dict[int, int] = {}
    for latent in ranked:
        seen.setdefault(int(survey.window[latent, 0, BEFORE]), latent)
    return list(seen.values())[:COUNT]


@torch.inference_mode()
def _uses(sae: SAE, store: Store, hook: str, latents: list[int], bar: Bar) -> list[torch.Tensor]:
    """For each latent, how often it fires on each token."""
    uses = [torch.zeros(1, dtype=torch.int64) for _ in latents]
    for chunk in store.chunks(hook, max(1, ROWS // store.manifest.context)):
        if latents:
            tokens = chunk.tokens[chunk.keep]
            active = sae.encode_latents(chunk.activations[chunk.keep], latents) > 0
            for i, fires in enumerate(active.T):
                more = torch.bincount(tokens[fires], minlength=len(uses[i]))
                more[: len(uses[i])] += uses[i]
                uses[i] = more
        bar.advance(chunk.keep.numel())
    return uses


def _contexts(survey: Survey, latent: int, pieces: Pieces) -> list[str]:
    found = []
    for context in range(CONTEXTS):
        if int(survey.sequence[latent, context]) < 0:
            break
        ids = survey.window[latent, context].tolist()
        text = pieces([i for i in ids if i >= 0])
        peak = sum(i >= 0 for i in ids[:BEFORE])
        before, token, after = "".join(text[:peak]), text[peak], "".join(text[peak + 1 :])
        found.append(visible(f"{before}«{token}»{after}"))
    return found
