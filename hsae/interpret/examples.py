"""The contexts of an index in two halves: one to explain from, one to score on. No sequence is in both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from hsae.evidence.index import Index
from hsae.evidence.latent import WINDOW

NEVER, DENSE = "never fires", "fires in nearly every window"
"""reasons for no score, besides too few contexts"""
EXPLAIN, SCORE = 0, 1
"""the halves: sequences of even number explain, those of odd number score"""
LEAST = 8
"""contexts that a latent needs in each half, and windows that it is silent in, to be scored"""
FEW = 3
"""contexts that are too few to explain from"""
MARKED = 0.3
"""tokens of a context with at least this share of its strongest activation are its marked ones (delphi's threshold)"""


@dataclass(frozen=True)
class Contexts:
    """Contexts of one latent, or windows: token ids (-1 outside of the sequence) and the latent's activations."""

    tokens: Int[np.ndarray, "context token"]
    code: Float[np.ndarray, "context token"]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, which: Bool[np.ndarray, "context"] | Int[np.ndarray, "some"]) -> Contexts:
        return Contexts(self.tokens[which], self.code[which])

    @property
    def strength(self) -> Float[np.ndarray, "context"]:
        """The highest activation in each."""
        return self.code.max(1, initial=0)

    @property
    def marked(self) -> Bool[np.ndarray, "context token"]:
        """The tokens that the latent is about."""
        return (self.code > 0) & (self.code >= MARKED * self.strength[:, None])

    @property
    def silent(self) -> Bool[np.ndarray, "context token"]:
        """The tokens that it is silent at."""
        return (self.code == 0) & (self.tokens >= 0)


@dataclass(frozen=True)
class Half:
    """What one half has of one latent.

    Attributes:
        drawn: contexts drawn evenly from all its firings.
        top: its strongest contexts, those in `drawn` left out.
        windows: drawn evenly from the store, whatever fires in them; the same ones for every latent.
    """

    drawn: Contexts
    top: Contexts
    windows: Contexts

    @property
    def quiet(self) -> Bool[np.ndarray, "window"]:
        """The windows that the latent is silent in."""
        return self.windows.strength == 0


class Halves:
    """The contexts of all latents of an index, by latent and half.

    Args:
        index: where they are read from, once.
    """

    def __init__(self, index: Index) -> None:
        self._parts = {}
        for kind in ("sample", "top"):
            offset, tokens, code = index.contexts(kind)
            place = np.stack([index.array(f"{kind}_sequence"), index.array(f"{kind}_position")], 1).astype(np.int64)
            self._parts[kind] = (offset, tokens, code, place)
        names = ("offset", "window", "place", "value")
        self._offset, self._window, self._place, self._value = (index.array(f"random_{n}") for n in names)
        self._windows, self._half = index.random(), index.array("random_sequence") % 2
        self.latents = index.latents

    def windows(self, half: int) -> Int[np.ndarray, "window token"]:
        """Token ids of a half's windows."""
        return self._windows[self._half == half]

    def of(self, latent: int, half: int) -> Half:
        """One latent's contexts in one half."""
        drawn, at = self._contexts("sample", latent, half)
        top, at_top = self._contexts("top", latent, half)
        new = ~(at_top[:, None] == at[None]).all(2).any(1)
        code = np.zeros((len(self._windows), WINDOW), np.float32)
        entries = slice(*self._offset[latent : latent + 2])
        code[self._window[entries], self._place[entries]] = self._value[entries]
        return Half(drawn, top[new], Contexts(self.windows(half), code[self._half == half]))

    def reason(self, latent: int) -> str:
        """Why a latent cannot be scored; empty where it can."""
        if self._parts["sample"][0][latent] == self._parts["sample"][0][latent + 1]:
            return NEVER
        halves = [self.of(latent, half) for half in (EXPLAIN, SCORE)]
        counts = [len(half.drawn) for half in halves]
        if min(counts) < LEAST:
            return f"too few contexts: {counts[0]} to explain from, {counts[1]} to score on"
        return DENSE if min(half.quiet.sum() for half in halves) < LEAST else ""

    def _contexts(self, kind: str, latent: int, half: int) -> tuple[Contexts, Int[np.ndarray, "context 2"]]:
        offset, tokens, code, place = self._parts[kind]
        of_latent = slice(*offset[latent : latent + 2])
        there = place[of_latent, 0] % 2 == half
        return Contexts(tokens[of_latent][there], code[of_latent][there]), place[of_latent][there]
