"""One latent of an SAE in one pass over a store."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hsae.evidence.survey import ROWS, Advance, ignore
from hsae.sae import SAE
from hsae.store import Store

BEFORE, AFTER = 48, 32
"""tokens given on either side of a peak, where the sequence has them"""
BINS = 32
"""bins of the histogram before it is cut at the maximum"""


@dataclass(frozen=True)
class Histogram:
    """Counts of activations above zero: bin i has those in (i · width, (i + 1) · width]; the last has the maximum."""

    width: float
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Context:
    """A stretch of one sequence around a latent's peak. Token i of it stands at position `start + i` of the sequence.

    `activations` has one value for each token, 0 at positions that do not count.
    """

    sequence: int
    position: int
    activation: float
    start: int
    tokens: tuple[int, ...]
    activations: tuple[float, ...]

    @property
    def peak(self) -> int:
        """The peak's index in `tokens`."""
        return self.position - self.start


@dataclass(frozen=True)
class TokenUse:
    """A token that a latent fires on: how often, with what share of all its activation, and of how many occurrences."""

    token: int
    firings: int
    mass: float
    occurrences: int


@dataclass(frozen=True)
class LatentEvidence:
    """One latent over one store. `mean` is over the positions where it fires, 0 for a latent that never does."""

    latent: int
    latents: int
    rows: int
    firings: int
    mean: float
    maximum: float
    histogram: Histogram
    contexts: tuple[Context, ...]
    tokens: tuple[TokenUse, ...]

    @property
    def rate(self) -> float:
        """The share of positions at which it fires."""
        return self.firings / max(self.rows, 1)


@torch.inference_mode()
def examine(
    sae: SAE, store: Store, hook: str, latent: int, contexts: int = 10, tokens: int = 10, advance: Advance = ignore
) -> LatentEvidence:
    """One latent in one pass over a store.

    Args:
        sae: on the CPU; its width must be the hook point's.
        store: the activations, and the tokens under them.
        hook: a hook point of the store.
        latent: 0 … `sae.latents` - 1.
        contexts: the most contexts to return, each from another sequence, highest peak first.
        tokens: the most tokens to return, those with the largest share of the activation first.
        advance: called as the pass goes on.
    """
    histogram = _Growing()
    occurrences, firings, mass = (torch.zeros(0, dtype=torch.float64) for _ in range(3))
    rows, maximum = 0, 0.0
    top: list[Context] = []
    for chunk in store.chunks(hook, max(1, ROWS // store.manifest.context)):
        parts = chunk.activations[chunk.keep].split(ROWS)
        kept = torch.cat([sae.encode_latents(part, [latent])[:, 0] for part in parts])
        token, active = chunk.tokens[chunk.keep], kept > 0
        rows += len(kept)
        histogram.add(kept[active])
        occurrences = _tally(occurrences, token)
        firings = _tally(firings, token[active])
        mass = _tally(mass, token[active], kept[active])
        code = torch.zeros(chunk.keep.shape)
        code[chunk.keep] = kept
        peak, position = code.max(1)
        floor = top[-1].activation if len(top) == contexts else 0.0
        top += [
            _context(chunk.first + row, int(position[row]), chunk.tokens[row], code[row])
            for row in (peak > floor).nonzero().flatten().tolist()
        ]
        # Python's sort is stable: among equals the earlier sequence stays first.
        top = sorted(top, key=lambda context: -context.activation)[:contexts]
        maximum = max(maximum, float(peak.max()))
        advance(chunk.keep.numel())
    total = float(mass.sum())
    leading = [i for i in mass.argsort(descending=True, stable=True)[:tokens].tolist() if firings[i] > 0]
    return LatentEvidence(
        latent=latent,
        latents=sae.latents,
        rows=rows,
        firings=int(firings.sum()),
        mean=total / max(int(firings.sum()), 1),
        maximum=maximum,
        histogram=histogram.upto(maximum),
        contexts=tuple(top),
        tokens=tuple(TokenUse(i, int(firings[i]), float(mass[i]) / total, int(occurrences[i])) for i in leading),
    )


def _context(sequence: int, position: int, tokens: Int[Tensor, "token"], code: Float[Tensor, "token"]) -> Context:
    start, stop = max(0, position - BEFORE), position + AFTER + 1
    values = code[start:stop].tolist()
    return Context(
        sequence, position, values[position - start], start, tuple(tokens[start:stop].tolist()), tuple(values)
    )


def _tally(total: Tensor, index: Int[Tensor, "row"], weight: Tensor | None = None) -> Tensor:
    """`total` with a count (or a weight) added for each index, longer if an index asks for it."""
    more = torch.bincount(index, None if weight is None else weight.double(), minlength=len(total)).double()
    more[: len(total)] += total
    return more


class _Growing:
    """A histogram made in one pass, though the maximum is known only at its end.

    The range is a power of two and doubles when a value exceeds it: neighbouring bins are added in pairs, so every
    count stays exact, and the result does not depend on the order of the values.
    """

    def __init__(self) -> None:
        self.top, self.counts = 0.0, torch.zeros(BINS, dtype=torch.int64)

    def add(self, values: Float[Tensor, "value"]) -> None:
        """Count values above zero."""
        if not len(values):
            return
        highest = float(values.max())
        if not self.top:
            mantissa, exponent = math.frexp(highest)
            self.top = 2.0 ** (exponent - (mantissa == 0.5))
        while highest > self.top:
            self.top *= 2
            self.counts = torch.cat([self.counts.view(-1, 2).sum(1), torch.zeros(BINS // 2, dtype=torch.int64)])
        bins = (values.double() * (BINS / self.top)).ceil().long() - 1
        self.counts += torch.bincount(bins, minlength=BINS)

    def upto(self, maximum: float) -> Histogram:
        """The bins up to the one that holds the maximum: more than half of them."""
        width = self.top / BINS
        used = math.ceil(maximum / width) if width else 0
        return Histogram(width, tuple(self.counts[:used].tolist()))
