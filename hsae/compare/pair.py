"""Two SAEs: which latents of one are latents of the other, by what they write and by when they fire.

    cosine        between rows of the decoders: what a latent adds to the activation
    correlation   Pearson's, between codes over some tokens: when a latent fires, and how strongly

By each of them latents are matched one to one so that the sum of similarities is the highest (`hsae.matching`). Only
latents that fire on the tokens take part: a dead latent's row is where it started, and two SAEs of one seed may have
started from the same rows. For the correlation a latent must fire at least `FEW` times, and not be constant.

What chance gives stands beside each: for the cosine two dictionaries of as many rows, drawn at random with the mean and
covariance that the real ones' directions have; for the correlation the same codes, with one SAE's tokens shuffled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hsae.compare.activity import Activity, activity, codes, correlation
from hsae.compare.matched import Group, Matching, match
from hsae.errors import UserError
from hsae.matching import directions
from hsae.sae import SAE

SHARED = 0.7
"""similarity above which two matched latents count as the same"""
FEW = 10
"""firings below which a latent's correlations say nothing"""


@dataclass(frozen=True)
class Side:
    """An SAE to compare: what to call it, and how it fires on the tokens."""

    name: str
    sae: SAE
    activity: Activity

    @classmethod
    def of(cls, name: str, sae: SAE, rows: Float[Tensor, "token width"]) -> Side:
        """An SAE as it fires on tokens, which are at the store's scale."""
        return cls(name, sae, activity(sae, rows))

    def some(self, mask: Bool[Tensor, "latent"]) -> Group:
        """Those of its latents that a mask says."""
        return Group(mask.nonzero().flatten(), self.activity.rate[mask])


@dataclass(frozen=True)
class Comparison:
    """Two SAEs on the same tokens.

    Attributes:
        a, b: their names; size_a, size_b: latents of each, dead_a, dead_b: those that never fire on the tokens.
        tokens: how many.
        threshold: similarity above which a matched pair counts as shared.
        both: latents of a matched by both measures; same: those that get the same partner by both.
    """

    a: str
    b: str
    size_a: int
    size_b: int
    dead_a: int
    dead_b: int
    tokens: int
    threshold: float
    cosine: Matching
    correlation: Matching
    both: int
    same: int


@torch.inference_mode()
def compare_saes(a: Side, b: Side, rows: Float[Tensor, "token width"], threshold: float = SHARED) -> Comparison:
    """Match the latents of two SAEs of the same hook point. Sizes may differ; nothing is changed, nothing is drawn.

    Memory: two matrices of a's latents by b's, in float64; and 8 bytes for each active latent of each token.

    Args:
        a: one, made by `Side.of` with the same rows.
        b: the other.
        rows: the tokens, at the store's scale.
        threshold: similarity above which a matched pair counts as shared.

    Raises:
        UserError: they take activations of different widths.
    """
    if a.sae.width != b.sae.width:
        raise UserError(f"{a.name} takes activations {a.sae.width} wide, {b.name} {b.sae.width}: they share no latents")
    cosine, together = _by_cosine(a, b, threshold), _by_correlation(a, b, rows, threshold)
    partner = {one: other for one, other, _ in together.pairs}
    both = [partner[one] == other for one, other, _ in cosine.pairs if one in partner]
    return Comparison(
        a=a.name,
        b=b.name,
        size_a=a.sae.latents,
        size_b=b.sae.latents,
        dead_a=int((a.activity.firings == 0).sum()),
        dead_b=int((b.activity.firings == 0).sum()),
        tokens=len(rows),
        threshold=threshold,
        cosine=cosine,
        correlation=together,
        both=len(both),
        same=sum(both),
    )


def _by_cosine(a: Side, b: Side, threshold: float) -> Matching:
    unit_a, unit_b = directions(a.sae.W_dec), directions(b.sae.W_dec)
    live_a = a.some((a.activity.firings > 0) & (unit_a.norm(dim=1) > 0))
    live_b = b.some((b.activity.firings > 0) & (unit_b.norm(dim=1) > 0))
    unit_a, unit_b = unit_a[live_a.latents], unit_b[live_b.latents]

    def drawn() -> Float[Tensor, "one other"]:
        return _cosines(_like(unit_a, 0), _like(unit_b, 1))

    return match("cosine", live_a, live_b, lambda: _cosines(unit_a, unit_b), drawn, threshold)


def _by_correlation(a: Side, b: Side, rows: Float[Tensor, "token width"], threshold: float) -> Matching:
    often_a, often_b = (side.some((side.activity.firings >= FEW) & (side.activity.spread > 0)) for side in (a, b))
    one, other = codes(a.sae, often_a.latents, rows), codes(b.sae, often_b.latents, rows)
    of_a, of_b = a.activity.some(often_a.latents), b.activity.some(often_b.latents)

    def shuffled() -> Float[Tensor, "one other"]:
        return correlation(one, other[np.random.default_rng(0).permutation(len(rows))], of_a, of_b)

    return match("correlation", often_a, often_b, lambda: correlation(one, other, of_a, of_b), shuffled, threshold)


def _cosines(a: Float[Tensor, "one width"], b: Float[Tensor, "other width"]) -> Float[Tensor, "one other"]:
    return (a @ b.T).float().clamp_(-1, 1)


def _like(unit: Float[Tensor, "latent width"], seed: int) -> Float[Tensor, "latent width"]:
    """As many random directions, from the normal distribution with the mean and covariance of these.

    As many directions of no preference as the width join in, so that a few rows do not pass for a distribution.
    """
    generator, (count, width) = torch.Generator().manual_seed(seed), unit.shape
    others = torch.randn(width, width, generator=generator, dtype=unit.dtype)
    unit = torch.cat([unit, torch.nn.functional.normalize(others, dim=1)])
    mean = unit.mean(0)
    # Random sums of the centred rows have their covariance.
    shares = (torch.randn(len(part), len(unit), generator=generator) for part in torch.empty(count).split(4096))
    drawn = [part.double() @ (unit - mean) / len(unit) ** 0.5 + mean for part in shares]
    return torch.nn.functional.normalize(torch.cat(drawn), dim=1) if drawn else unit[:0]
