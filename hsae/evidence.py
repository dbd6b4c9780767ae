"""What a store says about the latents of an SAE: how often each fires, how strongly, on which tokens and where.

Numbers only; the terminal, the page and the server draw them. A latent *fires* at a position where its activation is
above zero. Positions that the store leaves out (keep=False) are no evidence: they are neither encoded nor counted.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hsae import config
from hsae.files import replacing
from hsae.sae import SAE
from hsae.store import Store

CONTEXTS = 16
"""strongest contexts that a survey keeps for each latent"""
BEFORE, AFTER = 8, 4
"""tokens that a survey keeps on either side of a peak"""
WIDE_BEFORE, WIDE_AFTER = 48, 32
"""tokens that `examine` gives on either side of a peak, where the sequence has them"""
ROWS = 1024
"""rows encoded at a time: their code at 3,200 latents is 13 MB"""
BINS = 32

Advance = Callable[[int], None]
"""told how many positions of the store have been passed since the last call"""


def _ignore(_: int) -> None: ...


@dataclass(frozen=True)
class Survey:
    """All latents over one store. Where a latent has fewer than `CONTEXTS` contexts the rest hold activation 0 and -1.

    Attributes:
        rows: how many positions count, [1].
        firings: at how many of them each latent fires.
        mean: mean activation where it fires; 0 for a latent that never does.
        activation: peaks of its strongest contexts, each from another sequence; strongest first, then the earlier.
        sequence: the store's index of that sequence.
        position: the peak's place in it.
        window: token ids around the peak, which is at column `BEFORE`; -1 beyond the sequence's ends.
    """

    rows: Int[Tensor, "1"]
    firings: Int[Tensor, "latent"]
    mean: Float[Tensor, "latent"]
    activation: Float[Tensor, "latent context"]
    sequence: Int[Tensor, "latent context"]
    position: Int[Tensor, "latent context"]
    window: Int[Tensor, "latent context token"]

    @property
    def rate(self) -> Float[Tensor, "latent"]:
        """The share of positions at which each latent fires."""
        return self.firings / self.rows.clamp(min=1)

    @property
    def maximum(self) -> Float[Tensor, "latent"]:
        """The highest activation of each latent."""
        return self.activation[:, 0]

    @property
    def dead(self) -> list[int]:
        """The latents that never fire on this store."""
        return (self.firings == 0).nonzero().flatten().tolist()

    @property
    def selectivity(self) -> Float[Tensor, "latent"]:
        """The share of a latent's `CONTEXTS` strongest contexts that peak on one and the same token, 1/CONTEXTS … 1.

        0 for a latent that fires in fewer sequences than that: one context is always of one token.
        """
        peak = self.window[:, :, BEFORE]
        most = (peak[:, :, None] == peak[:, None, :]).sum(2).amax(1)
        return torch.where(self.sequence[:, -1] >= 0, most / CONTEXTS, 0.0)

    def most_active(self, count: int) -> list[int]:
        """The live latents with the highest firing rate, highest first."""
        order = self.firings.argsort(descending=True, stable=True)
        return order[: min(count, int((self.firings > 0).sum()))].tolist()

    def most_selective(self, count: int) -> list[int]:
        """The latents with the highest selectivity, highest first; among equals those that fire more."""
        by_firings = self.firings.argsort(descending=True, stable=True)
        selectivity = self.selectivity[by_firings]
        order = selectivity.argsort(descending=True, stable=True)[: int((selectivity > 0).sum())]
        return by_firings[order][:count].tolist()


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
def survey(sae: SAE, store: Store, hook: str, advance: Advance = _ignore) -> Survey:
    """Every latent in one pass over a store, in memory for `ROWS` rows of code beside what is returned.

    Args:
        sae: on the CPU; its width must be the hook point's.
        store: the activations, and the tokens under them.
        hook: a hook point of the store.
        advance: called as the pass goes on.
    """
    strongest = _Strongest(sae.latents)
    rows = 0
    firings = torch.zeros(sae.latents, dtype=torch.int64)
    total = torch.zeros(sae.latents, dtype=torch.float64)
    for chunk in store.chunks(hook, max(1, ROWS // store.manifest.context)):
        where, x = chunk.keep.nonzero(), chunk.activations[chunk.keep]
        for place, part in zip(where.split(ROWS), x.split(ROWS), strict=True):
            code = sae.encode(part)
            sequences, counts = place[:, 0].unique_consecutive(return_counts=True)
            pieces = zip(
                sequences.tolist(), code.split(counts.tolist()), place[:, 1].split(counts.tolist()), strict=True
            )
            for sequence, piece, position in pieces:
                strongest.offer(chunk.first + sequence, piece, position)
            # A product with ones is the fastest sum over rows; counts to ROWS are exact in float32. In place, since
            # another tensor of this size costs as much as the encoder product.
            ones = torch.ones(len(part))
            total += ones @ code
            firings += (ones @ code.gt_(0)).long()
        rows += len(x)
        advance(chunk.keep.numel())
    return Survey(
        rows=torch.tensor([rows]),
        firings=firings,
        mean=(total / firings.clamp(min=1)).float(),
        activation=strongest.activation,
        sequence=strongest.sequence,
        position=strongest.position,
        window=_windows(store, strongest.sequence, strongest.position),
    )


class _Strongest:
    """The `CONTEXTS` highest peaks of each latent, from distinct sequences."""

    def __init__(self, latents: int) -> None:
        self.activation = torch.zeros(latents, CONTEXTS)
        self.sequence = torch.full((latents, CONTEXTS), -1)
        self.position = torch.full((latents, CONTEXTS), -1)

    def offer(self, sequence: int, code: Float[Tensor, "row latent"], position: Int[Tensor, "row"]) -> None:
        """Take in rows of one sequence, in order. A long sequence may come in several calls, one after the other."""
        # After the first few sequences only a few latents see a peak that enters their list.
        better = (code.amax(0) > self.activation[:, -1]).nonzero().squeeze(1)
        if not len(better):
            return
        value, row = code[:, better].max(0)
        old = self.activation[better]
        same = self.sequence[better] == sequence
        higher = value > torch.where(same, old, 0).amax(1)
        old = torch.where(same & higher[:, None], 0, old)
        value = torch.where(higher, value, 0)
        activation, order = torch.cat([old, value[:, None]], 1).sort(dim=1, descending=True, stable=True)
        order, activation = order[:, :CONTEXTS], activation[:, :CONTEXTS]
        self.activation[better] = activation
        for kept, new in ((self.sequence, torch.full_like(better, sequence)), (self.position, position[row])):
            column = torch.cat([kept[better], new[:, None]], 1).gather(1, order)
            kept[better] = torch.where(activation > 0, column, -1)


def _windows(
    store: Store, sequence: Int[Tensor, "latent context"], position: Int[Tensor, "latent context"]
) -> Int[Tensor, "latent context token"]:
    """Token ids from `BEFORE` places before each position to `AFTER` behind it; -1 where there is none."""
    windows = torch.full((*sequence.shape, BEFORE + 1 + AFTER), -1, dtype=torch.int32)
    start = 0
    for shard in store.manifest.shards:
        here = (sequence >= start) & (sequence < start + shard.sequences)
        if here.any():
            (tokens,) = store.read(shard, "tokens")
            padded = torch.nn.functional.pad(tokens, (BEFORE, AFTER), value=-1)
            columns = position[here][:, None] + torch.arange(BEFORE + 1 + AFTER)
            windows[here] = padded[(sequence[here] - start)[:, None], columns]
        start += shard.sequences
    return windows


def cached_survey(path: Path, sae: SAE, store: Store, hook: str, advance: Advance = _ignore) -> Survey:
    """The survey in the file `path` if it is of this SAE, store and hook point; else a new one, saved there."""
    facts = {"format": "hsae-survey-1", "sae": fingerprint(sae), "store": store.manifest.fingerprint, "hook": hook}
    names = [field.name for field in fields(Survey)]
    try:
        with safe_open(path, framework="pt") as file:
            if file.metadata() == facts:
                return Survey(**{name: file.get_tensor(name) for name in names})
    except (OSError, SafetensorError):
        pass
    result = survey(sae, store, hook, advance)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as aside:
            save_file({name: getattr(result, name).contiguous() for name in names}, aside, metadata=facts)
    except (OSError, SafetensorError):
        pass  # A run folder that cannot be written to can still be read: the survey is made anew each time.
    return result


def fingerprint(sae: SAE) -> str:
    """Hex digits that change with any weight or setting of an SAE."""
    digest = hashlib.sha256(json.dumps([config.table(sae.variant), sae.scale], sort_keys=True).encode())
    for weight in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec):
        digest.update(repr((weight.dtype, tuple(weight.shape))).encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


@torch.inference_mode()
def examine(
    sae: SAE, store: Store, hook: str, latent: int, contexts: int = 10, tokens: int = 10, advance: Advance = _ignore
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
        kept = torch.cat([sae.encode(part)[:, latent] for part in parts])
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
    start, stop = max(0, position - WIDE_BEFORE), position + WIDE_AFTER + 1
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
