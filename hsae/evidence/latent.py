"""What is known of one latent: the parts of its evidence, and how much of each an index keeps."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

FORM = "hsae-evidence-1"
BEFORE, AFTER = 19, 12
"""tokens kept on either side of a context's peak"""
WINDOW = BEFORE + 1 + AFTER
TOP = 16
"""strongest contexts of each latent, each from another sequence"""
SAMPLES = 30
"""contexts drawn evenly from all of a latent's firings, each from another sequence"""
QUANTILES = 5
"""into which the samples are parted"""
RANDOM = 256
"""windows drawn evenly from the store, whatever fires in them"""
BINS = 32
"""bins of a histogram before it is cut at the maximum"""
TOKENS = 32
"""tokens of each latent that are kept, those with the largest share of its activation"""
PARTNERS = 12
"""co-active latents, and nearest decoder directions, of each latent"""
LOGITS = 12
"""promoted tokens of each latent, and suppressed ones"""


@dataclass(frozen=True)
class Histogram:
    """Counts of activations above zero: bin i has those in (i · width, (i + 1) · width]; the last has the maximum."""

    width: float
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Context:
    """A stretch of one sequence around a position where a latent fires. Token i of it stands at `start + i`.

    `activations` has one value for each token, 0 where the latent is silent and at positions that do not count.
    """

    sequence: int
    position: int
    start: int
    tokens: tuple[int, ...]
    activations: tuple[float, ...]

    @property
    def peak(self) -> int:
        """The index in `tokens` of the position that it was chosen for."""
        return self.position - self.start

    @property
    def activation(self) -> float:
        """The activation there."""
        return self.activations[self.peak]


@dataclass(frozen=True)
class TokenUse:
    """A token that a latent fires on: how often, with what share of all its activation, and of how many occurrences."""

    token: int
    firings: int
    mass: float
    occurrences: int


@dataclass(frozen=True)
class CoActive:
    """A latent that fires on the same tokens. `correlation`: of firing or not (phi); `share`: of this one's firings."""

    latent: int
    correlation: float
    share: float


@dataclass(frozen=True)
class Near:
    """A latent with a similar decoder direction."""

    latent: int
    cosine: float


@dataclass(frozen=True)
class Logit:
    """A token, and what a decoder direction of unit norm adds to its logit (less the mean over tokens)."""

    token: int
    logit: float


@dataclass(frozen=True)
class LatentEvidence:
    """One latent over one store.

    Attributes:
        rows: how many positions count.
        mean: over the positions where it fires; 0 for a latent that never does.
        top: its strongest contexts, each from another sequence; strongest first, then the earlier.
        samples: contexts drawn evenly from all its firings, strongest first.
        tokens: the largest share of its activation first. `doubt` bounds the share that a listed token may lack.
        coactive, near: highest correlation or cosine first.
        promoted, suppressed: by the logit lens; empty where the index has none.
    """

    latent: int
    rows: int
    firings: int
    mean: float
    maximum: float
    histogram: Histogram
    top: tuple[Context, ...]
    samples: tuple[Context, ...]
    tokens: tuple[TokenUse, ...]
    doubt: float
    coactive: tuple[CoActive, ...]
    near: tuple[Near, ...]
    promoted: tuple[Logit, ...]
    suppressed: tuple[Logit, ...]

    @property
    def rate(self) -> float:
        """The share of positions at which it fires."""
        return self.firings / max(self.rows, 1)

    def quantiles(self) -> tuple[tuple[Context, ...], ...]:
        """The samples in `QUANTILES` equal parts, the strongest fifth of its firings first; fewer parts where few."""
        count = len(self.samples)
        cuts = [count * i // QUANTILES for i in range(QUANTILES + 1)]
        return tuple(self.samples[a:b] for a, b in itertools.pairwise(cuts) if b > a)
