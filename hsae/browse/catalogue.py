"""The latents of one SAE as a list: in which order, which of them, and what a line says of each. Read as needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int

from hsae.evidence.index import DENSE, Index
from hsae.evidence.latent import Context, LatentEvidence
from hsae.evidence.subject import Subject
from hsae.inspect.tokens import Pieces

if TYPE_CHECKING:
    from hsae.interpret.results import Explanation

ORDERS = {
    "same": "most selective first",
    "fires": "most active first",
    "max": "strongest first",
    "latent": "by number",
    "token": "by top token",
    "score": "best explained first",
}
"""what the list can be sorted by, and in which direction that goes"""
FILTERS = ("all", "live", "dense", "dead", "explained")
"""what the list can be cut down to"""
GLANCES, PAGES = 4096, 64
"""latents kept in memory: those drawn as a line, those read whole"""
LONGEST = 200
"""characters of one token that are kept: no line shows more"""


@dataclass(frozen=True)
class Stretch:
    """A context with its text: `text[i]` is the piece of token i, `strengths[i]` its activation over the maximum."""

    activation: float
    text: tuple[str, ...]
    strengths: tuple[float, ...]
    peak: int


class Catalogue:
    """One SAE's latents over one store.

    Args:
        subject: which SAE, and the store.
        index: its evidence.
        explanations: those that there are, by latent; one without text is none.
    """

    def __init__(self, subject: Subject, index: Index, explanations: Mapping[int, Explanation]) -> None:
        self.subject, self.index = subject, index
        self.explanations = {latent: explanation for latent, explanation in explanations.items() if explanation.text}
        self.pieces = Pieces(subject.tokenizer)
        self.evidence = lru_cache(PAGES)(index.latent)
        self.glance = lru_cache(GLANCES)(self._glance)
        self.order = lru_cache(2)(self._order)
        self.token = lru_cache(GLANCES)(self._token)

    @property
    def latents(self) -> int:
        """How many there are."""
        return self.index.latents

    @property
    def orders(self) -> tuple[str, ...]:
        """The names in `ORDERS` that mean something here."""
        return tuple(name for name in ORDERS if name != "score" or self.explanations)

    @property
    def filters(self) -> tuple[str, ...]:
        """The names in `FILTERS` that mean something here."""
        return tuple(name for name in FILTERS if name != "explained" or self.explanations)

    def _order(self, by: str, backwards: bool) -> Int[np.ndarray, "latent"]:
        """All latents, sorted. Equal ones stand by firing rate; those that never fire come last, either way round."""
        firings = self.index.firings
        ranked = np.argsort(-firings, kind="stable")
        value = self._value(by)[ranked]
        ranked = ranked[np.argsort(-value if backwards else value, kind="stable")]
        if by == "latent":
            return ranked
        return np.concatenate([ranked[firings[ranked] > 0], ranked[firings[ranked] == 0]])

    def _value(self, by: str) -> np.ndarray:
        """What to sort by, lowest first."""
        match by:
            case "same":
                # As `Index.most_selective`: the dense come after all others, whatever their peaks are on.
                return (self.index.rate > DENSE) - self.index.selectivity
            case "fires":
                return -self.index.firings
            case "max":
                return -self.index.maximum
            case "token":
                return self._alphabetical
            case "score":
                scores = ((i, e.score) for i, e in self.explanations.items())
                value = np.ones(self.latents)
                for latent, score in scores:
                    value[latent] = 0.0 if score is None else -score
                return value
            case _:
                return np.arange(self.latents)

    def among(self, name: str) -> Bool[np.ndarray, "latent"]:
        """Which latents a filter lets through."""
        live = self.index.firings > 0
        match name:
            case "live":
                return live
            case "dead":
                return ~live
            case "dense":
                return self.index.rate > DENSE
            case "explained":
                return np.isin(np.arange(self.latents), list(self.explanations))
            case _:
                return np.ones(self.latents, bool)

    @cached_property
    def top_token(self) -> Int[np.ndarray, "latent"]:
        """The token with the largest share of each latent's activation; -1 where it never fires."""
        offset = self.index.array("token_offset")
        found = np.full(self.latents, -1, np.int64)
        some = np.flatnonzero(np.diff(offset))
        found[some] = self.index.array("token_id")[offset[some]]
        return found

    @cached_property
    def _alphabetical(self) -> Int[np.ndarray, "latent"]:
        tokens, which = np.unique(self.top_token, return_inverse=True)
        texts = [self._token(int(token)).strip().casefold() if token >= 0 else "" for token in tokens]
        rank = np.empty(len(texts), np.int64)
        rank[sorted(range(len(texts)), key=texts.__getitem__)] = np.arange(len(texts))
        return rank[which.reshape(-1)]

    def _token(self, token: int) -> str:
        return self.pieces.one(token)[:LONGEST]

    def _glance(self, latent: int) -> Stretch | None:
        top = self.index.latent(latent).top
        return self.stretch(top[0], float(self.index.maximum[latent])) if top else None

    def stretch(self, context: Context, maximum: float) -> Stretch:
        """A context with its tokens decoded."""
        return Stretch(
            context.activation,
            tuple(piece[:LONGEST] for piece in self.pieces(context.tokens)),
            tuple(value / maximum for value in context.activations),
            context.peak,
        )

    def contexts(self, evidence: LatentEvidence) -> tuple[Stretch, ...]:
        """A latent's strongest contexts."""
        return tuple(self.stretch(context, evidence.maximum) for context in evidence.top)
