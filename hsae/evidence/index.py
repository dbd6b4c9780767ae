"""The index: everything that a store says about the latents of one SAE, in one file. Read without PyTorch.

Arrays are sorted by latent. Where latents have different amounts, `NAME_offset` [latent + 1] says which rows are whose,
so that one latent is one slice of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from hsae.errors import UserError
from hsae.evidence.file import Arrays
from hsae.evidence.latent import (
    BEFORE,
    TOP,
    WINDOW,
    CoActive,
    Context,
    Histogram,
    LatentEvidence,
    Logit,
    Near,
    TokenUse,
)
from hsae.evidence.sound import fault

DENSE = 0.01
"""firing rate above which a latent is dense"""


class Index:
    """An index that is whole.

    Args:
        path: its file.

    Raises:
        UserError: missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = Arrays(path)
        self.facts: Mapping[str, str] = self._file.facts
        if wrong := fault(self._file):
            raise UserError(f"{path}: damaged or unreadable ({wrong}); delete it, and it is made anew")

    def array(self, name: str) -> Shaped[np.ndarray, "..."]:
        """A whole array of the file."""
        return self._file.array(name)

    @cached_property
    def rows(self) -> int:
        """How many positions count."""
        return int(self.array("rows")[0])

    @cached_property
    def firings(self) -> Int[np.ndarray, "latent"]:
        """At how many of them each latent fires."""
        return self.array("firings")

    @cached_property
    def maximum(self) -> Float[np.ndarray, "latent"]:
        """The highest activation of each latent."""
        return self.array("maximum")

    @cached_property
    def mean(self) -> Float[np.ndarray, "latent"]:
        """Mean activation where it fires; 0 for a latent that never does."""
        return self.array("total") / np.maximum(self.firings, 1)

    @property
    def latents(self) -> int:
        """The size of the dictionary."""
        return len(self.firings)

    @property
    def rate(self) -> Float[np.ndarray, "latent"]:
        """The share of positions at which each latent fires."""
        return self.firings / max(self.rows, 1)

    @property
    def has_logits(self) -> bool:
        """Whether there is a logit lens; `facts["logits"]` says why not."""
        return "promoted" in self._file

    @cached_property
    def occurrences(self) -> Int[np.ndarray, "token"]:
        """How often each token stands at a position that counts."""
        return self.array("occurrences")

    @cached_property
    def selectivity(self) -> Float[np.ndarray, "latent"]:
        """The share of a latent's `TOP` strongest contexts that peak on one and the same token, 1/TOP … 1.

        0 for a latent that fires in fewer sequences than that: one context is always of one token.
        """
        offset, peak = self.array("top_offset"), self.array("top_tokens")[:, BEFORE]
        result = np.zeros(self.latents)
        full = np.flatnonzero(np.diff(offset) == TOP)
        peaks = peak[offset[full][:, None] + np.arange(TOP)]
        result[full] = (peaks[:, :, None] == peaks[:, None, :]).sum(2).max(1, initial=0) / TOP
        return result

    def most_active(self, count: int) -> list[int]:
        """The live latents with the highest firing rate, highest first."""
        order = np.argsort(-self.firings, kind="stable")
        return order[: min(count, int((self.firings > 0).sum()))].tolist()

    def most_selective(self, count: int) -> list[int]:
        """The latents with the highest selectivity, highest first; among equals those that fire more.

        Dense latents, which fire on more than `DENSE` of the positions, come last: whatever their peaks are on, the
        rest of what they say is not about one token.
        """
        by_firings = np.argsort(-self.firings, kind="stable")
        selectivity = self.selectivity[by_firings]
        order = np.argsort(-(selectivity - (self.rate[by_firings] > DENSE)), kind="stable")
        return by_firings[order[selectivity[order] > 0]][:count].tolist()

    def check(self, latent: int) -> None:
        """Refuse a latent that is not there.

        Raises:
            UserError: it is not.
        """
        if not 0 <= latent < self.latents:
            raise UserError(f"latent {latent} is not in 0…{self.latents - 1}")

    def latent(self, latent: int) -> LatentEvidence:
        """All about one latent.

        Raises:
            UserError: there is no such latent.
        """
        self.check(latent)
        firings, total = int(self.firings[latent]), float(self._one("total", latent))
        width, counts = float(self._one("bin_width", latent)), self._one("histogram", latent)
        used = int(np.ceil(self.maximum[latent] / width)) if width else 0
        ids, times, mass = (self._some(name, "token", latent) for name in ("token_id", "token_firings", "token_mass"))
        coactive = zip(*(self._one(n, latent) for n in ("coactive", "coactive_phi", "coactive_share")), strict=True)
        near = zip(self._one("near", latent), self._one("near_cosine", latent), strict=True)
        samples = sorted(self._contexts("sample", latent), key=lambda context: -context.activation)
        return LatentEvidence(
            latent=latent,
            rows=self.rows,
            firings=firings,
            mean=total / max(firings, 1),
            maximum=float(self.maximum[latent]),
            histogram=Histogram(width, tuple(counts[:used].tolist())),
            top=tuple(self._contexts("top", latent)),
            samples=tuple(samples),
            tokens=tuple(
                TokenUse(int(i), int(n), float(m) / total, int(self.occurrences[i]))
                for i, n, m in zip(ids, times, mass, strict=True)
            ),
            doubt=float(self._one("token_doubt", latent)) / total if total else 0.0,
            coactive=tuple(CoActive(int(i), float(c), float(s)) for i, c, s in coactive if i >= 0),
            near=tuple(Near(int(i), float(c)) for i, c in near if i >= 0),
            promoted=self._logits("promoted", latent),
            suppressed=self._logits("suppressed", latent),
        )

    def contexts(self, kind: str) -> tuple[Int[np.ndarray, "offset"], Int[np.ndarray, "context token"], Any]:
        """All contexts at once, `kind` "top" or "sample": offsets by latent, token ids (-1 outside), activations."""
        return self.array(f"{kind}_offset"), self.array(f"{kind}_tokens"), self.array(f"{kind}_code")

    def random(self) -> Int[np.ndarray, "window token"]:
        """Token ids of windows drawn evenly from the store; -1 outside of a sequence."""
        return self.array("random_tokens")

    def in_random(self, latent: int) -> Float[np.ndarray, "window token"]:
        """A latent's activations in the windows of `random`."""
        code = np.zeros((len(self.random()), WINDOW), np.float32)
        window, place, value = (self._some(f"random_{n}", "random", latent) for n in ("window", "place", "value"))
        code[window, place] = value
        return code

    def _one(self, name: str, latent: int) -> Any:
        return self._file.array(name, latent, latent + 1)[0]

    def _some(self, name: str, offset: str, latent: int) -> Any:
        first, last = self._file.array(f"{offset}_offset", latent, latent + 2).tolist()
        return self._file.array(name, first, last)

    def _contexts(self, kind: str, latent: int) -> list[Context]:
        parts = (self._some(f"{kind}_{name}", kind, latent) for name in ("sequence", "position", "tokens", "code"))
        found = []
        for sequence, position, tokens, code in zip(*parts, strict=True):
            inside = tokens >= 0
            first = int(inside.argmax())
            if not inside[first : BEFORE + 1].all() or first > BEFORE:
                raise UserError(f"{self.path}: damaged (a context without its peak); delete it, and it is made anew")
            found.append(
                Context(
                    sequence=int(sequence),
                    position=int(position),
                    start=int(position) - BEFORE + first,
                    tokens=tuple(tokens[inside].tolist()),
                    activations=tuple(code[inside].tolist()),
                )
            )
        return found

    def _logits(self, name: str, latent: int) -> tuple[Logit, ...]:
        if not self.has_logits:
            return ()
        pairs = zip(self._one(name, latent), self._one(f"{name}_logit", latent), strict=True)
        return tuple(Logit(int(token), float(logit)) for token, logit in pairs)
