"""Latents of two SAEs matched one to one by some similarity: how similar they are, and which are shared or unique."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor, tensor

from hsae.matching import Assignment, assign

BINS = 40
"""bins of a histogram of similarities, from -1 to 1"""
LISTED = 10
"""latents in a list"""
QUANTILES = (0.05, 0.25, 0.75, 0.95)

Measure = Literal["cosine", "correlation"]


@dataclass(frozen=True)
class Group:
    """Latents of an SAE by number, and the share of tokens at which each fires."""

    latents: Int[Tensor, "latent"]
    rate: Float[Tensor, "latent"]


@dataclass(frozen=True)
class Twin:
    """A latent of each SAE, matched; `rate_a`, `rate_b`: the share of tokens at which each fires."""

    a: int
    b: int
    similarity: float
    rate_a: float
    rate_b: float


@dataclass(frozen=True)
class Lone:
    """A latent, and the one of the other SAE that is most similar to it, whether that is matched to it or not."""

    latent: int
    rate: float
    nearest: int
    similarity: float


@dataclass(frozen=True)
class Agreement:
    """How similar the latents of two dictionaries are; None where one of them has no latents.

    Attributes:
        mean, median: over the matched pairs; quantiles: those of `QUANTILES`.
        shared: pairs above the threshold.
        nearest_a: mean over a's latents of the highest similarity with any latent of b; nearest_b: the other way round.
            Of cosines this is the MMCS.
        histogram: pairs in each of `BINS` equal bins from -1 to 1.
    """

    mean: float | None
    median: float | None
    quantiles: tuple[float, ...]
    shared: int
    nearest_a: float | None
    nearest_b: float | None
    histogram: tuple[int, ...]


@dataclass(frozen=True)
class Matching:
    """Latents matched by one measure.

    Attributes:
        latents_a, latents_b: how many take part; the rest are dead, or for correlations too rare or constant.
        exact: the assignment is the best there is; if not, the best among the nearest candidates.
        found: how similar; chance: the same, by chance.
        unique_a, unique_b: latents that take part and are not shared.
        same_number: shared pairs of latents of the same number. SAEs of one seed may start from the same rows, and
            where many are such pairs they may have been shared before anything was learnt.
        pairs: all matched pairs, (a's latent, b's latent, similarity).
        alike: the most similar pairs.
        lone_a, lone_b: the latents least similar to any of the other SAE, none of them above the threshold.
    """

    measure: Measure
    latents_a: int
    latents_b: int
    exact: bool
    found: Agreement
    chance: Agreement
    unique_a: int
    unique_b: int
    same_number: int
    pairs: tuple[tuple[int, int, float], ...]
    alike: tuple[Twin, ...]
    lone_a: tuple[Lone, ...]
    lone_b: tuple[Lone, ...]


def match(
    measure: Measure,
    a: Group,
    b: Group,
    similarities: Callable[[], Float[Tensor, "one other"]],
    by_chance: Callable[[], Float[Tensor, "one other"]],
    threshold: float,
) -> Matching:
    """Match the latents of two SAEs.

    Args:
        measure: what is measured, in a word.
        a: the latents of one that take part; they are the rows of what the functions give.
        b: those of the other.
        similarities: gives the similarities, in [-1, 1]. Called once, and forgotten before the next.
        by_chance: gives as many that mean nothing.
        threshold: similarity above which a matched pair counts as shared.
    """
    similarity = similarities()
    assigned = assign(similarity)
    found = _agreement(similarity, assigned, threshold)
    value = similarity[assigned.row, assigned.column]
    rate_a, rate_b = a.rate[assigned.row].tolist(), b.rate[assigned.column].tolist()
    one, other = a.latents[assigned.row].tolist(), b.latents[assigned.column].tolist()
    twins = [Twin(*twin) for twin in zip(one, other, value.tolist(), rate_a, rate_b, strict=True)]
    # Among equals those that fire more.
    alike = sorted(twins, key=lambda twin: (-round(twin.similarity, 4), -twin.rate_a))[:LISTED]
    lone_a, lone_b = _lone(similarity, a, b, threshold), _lone(similarity.T, b, a, threshold)
    del similarity  # before the next of its size
    drawn = by_chance()
    return Matching(
        measure=measure,
        latents_a=len(a.latents),
        latents_b=len(b.latents),
        exact=assigned.exact,
        found=found,
        chance=_agreement(drawn, assign(drawn), threshold),
        unique_a=len(a.latents) - found.shared,
        unique_b=len(b.latents) - found.shared,
        same_number=sum(twin.a == twin.b and twin.similarity > threshold for twin in twins),
        pairs=tuple((twin.a, twin.b, twin.similarity) for twin in twins),
        alike=tuple(alike),
        lone_a=lone_a,
        lone_b=lone_b,
    )


def _agreement(similarity: Float[Tensor, "one other"], assigned: Assignment, threshold: float) -> Agreement:
    value = similarity[assigned.row, assigned.column].double()
    if not len(value):
        return Agreement(None, None, (), 0, None, None, (0,) * BINS)
    return Agreement(
        mean=value.mean().item(),
        median=value.quantile(0.5).item(),
        quantiles=tuple(value.quantile(tensor(QUANTILES, dtype=value.dtype)).tolist()),
        shared=int((value > threshold).sum()),
        nearest_a=similarity.amax(1).double().mean().item(),
        nearest_b=similarity.amax(0).double().mean().item(),
        histogram=tuple(int(count) for count in value.histc(BINS, -1, 1).tolist()),
    )


def _lone(similarity: Float[Tensor, "one other"], own: Group, other: Group, threshold: float) -> tuple[Lone, ...]:
    if not similarity.numel():
        return ()
    best, place = similarity.max(1)
    order = [i for i in best.argsort(stable=True)[:LISTED].tolist() if best[i] <= threshold]
    return tuple(
        Lone(int(own.latents[i]), own.rate[i].item(), int(other.latents[place[i]]), best[i].item()) for i in order
    )
