"""All latents of an SAE in one pass over a store, and the file that keeps the result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hsae import config
from hsae.files import replacing
from hsae.sae import SAE
from hsae.store import Store

CONTEXTS = 16
"""strongest contexts that a survey keeps for each latent"""
DENSE = 0.01
"""firing rate above which a latent is dense"""
BEFORE, AFTER = 12, 6
"""tokens that a survey keeps on either side of a peak"""
ROWS = 1024
"""rows encoded at a time: their code at 3,200 latents is 13 MB"""

Advance = Callable[[int], None]
"""told how many positions of the store have been passed since the last call"""


def ignore(_: int) -> None:
    """Show no progress."""


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
        """The latents with the highest selectivity, highest first; among equals those that fire more.

        Dense latents, which fire on more than `DENSE` of the positions, come last: whatever their peaks are on, the
        rest of what they say is not about one token.
        """
        by_firings = self.firings.argsort(descending=True, stable=True)
        selectivity = self.selectivity[by_firings]
        order = (selectivity - (self.rate[by_firings] > DENSE).float()).argsort(descending=True, stable=True)
        return by_firings[order[selectivity[order] > 0]][:count].tolist()


@torch.inference_mode()
def survey(sae: SAE, store: Store, hook: str, advance: Advance = ignore) -> Survey:
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
    strongest.merge()
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
    """The `CONTEXTS` highest peaks of each latent, from distinct sequences; call `merge` before reading them."""

    def __init__(self, latents: int) -> None:
        self.activation = torch.zeros(latents, CONTEXTS)
        self.sequence = torch.full((latents, CONTEXTS), -1)
        self.position = torch.full((latents, CONTEXTS), -1)
        self._waiting: list[tuple[int, Tensor, Tensor]] = []

    def offer(self, sequence: int, code: Float[Tensor, "row latent"], position: Int[Tensor, "row"]) -> None:
        """Take in rows of one sequence, in order. A long sequence may come in several calls, one after the other."""
        value, row = code.max(0)
        place = position[row]
        if self._waiting and self._waiting[-1][0] == sequence:
            _, old_value, old_place = self._waiting.pop()
            place = torch.where(value > old_value, place, old_place)
            value = torch.maximum(value, old_value)
        elif len(self._waiting) == CONTEXTS:
            self.merge()
        self._waiting.append((sequence, value, place))

    def merge(self) -> None:
        """Sort the peaks that wait into the lists. Many at a time, since sorting costs more than finding them."""
        if not self._waiting:
            return
        sequences, values, places = zip(*self._waiting, strict=True)
        self._waiting.clear()
        every = torch.cat([self.activation, torch.stack(values, 1)], 1)
        order = every.argsort(dim=1, descending=True, stable=True)[:, :CONTEXTS]
        self.activation = every.gather(1, order)
        new = torch.tensor(sequences).expand(len(order), -1), torch.stack(places, 1)
        self.sequence, self.position = (
            torch.where(self.activation > 0, torch.cat([kept, columns], 1).gather(1, order), -1)
            for kept, columns in zip((self.sequence, self.position), new, strict=True)
        )


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


def cached_survey(path: Path, sae: SAE, store: Store, hook: str, advance: Advance = ignore) -> Survey:
    """The survey in the file `path` if it is of this SAE, store and hook point; else a new one, saved there."""
    form = f"hsae-survey-1: {CONTEXTS} contexts, {BEFORE} + 1 + {AFTER} tokens"
    facts = {"format": form, "sae": fingerprint(sae), "store": store.manifest.fingerprint, "hook": hook}
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
            aside.write_bytes(save({name: getattr(result, name).contiguous() for name in names}, metadata=facts))
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
