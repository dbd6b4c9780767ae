"""Tables 2 and 3 on our own stores: latents that read well, where they fire, and how much of that is one token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hsae.errors import visible
from hsae.evidence import Index, Subject, open_index
from hsae.evidence.latent import BEFORE, Context
from hsae.inspect.tokens import Pieces

if TYPE_CHECKING:
    from rich.console import Console

COUNT, CONTEXTS = 5, 3
"""latents for each setup, contexts for each latent"""


@dataclass(frozen=True)
class Latent:
    """A latent and where it fires.

    Attributes:
        rate: share of positions at which it fires.
        selectivity: share of its strongest contexts that peak on one token (`Index.selectivity`).
        token: the token that it fires on most, and `share`: of its firings, those on that token.
        contexts: text around its strongest peaks, the firing token marked «so».
    """

    latent: int
    rate: float
    selectivity: float
    token: str
    share: float
    contexts: tuple[str, ...]


def readable(subject: Subject, console: Console | None = None) -> tuple[Latent, ...]:
    """The most selective latents of an SAE, each about another token."""
    index = open_index(subject, console)
    pieces = Pieces(subject.tokenizer)
    return tuple(_latent(index, latent, pieces) for latent in _chosen(index))


def _chosen(index: Index) -> list[int]:
    """The most selective latents; of those whose strongest peak is on one and the same token, the first."""
    offset, tokens, _ = index.contexts("top")
    seen: dict[int, int] = {}
    for latent in index.most_selective(index.latents):
        seen.setdefault(int(tokens[offset[latent], BEFORE]), latent)
    return list(seen.values())[:COUNT]


def _latent(index: Index, latent: int, pieces: Pieces) -> Latent:
    found = index.latent(latent)
    use = max(found.tokens, key=lambda use: use.firings)
    return Latent(
        latent=latent,
        rate=found.rate,
        selectivity=float(index.selectivity[latent]),
        token=visible(pieces.one(use.token)),
        share=use.firings / found.firings,
        contexts=tuple(_text(context, pieces) for context in found.top[:CONTEXTS]),
    )


def _text(context: Context, pieces: Pieces) -> str:
    text, peak = pieces(context.tokens), context.peak
    before, token, after = "".join(text[:peak]), text[peak], "".join(text[peak + 1 :])
    return visible(f"{before}«{token}»{after}")
