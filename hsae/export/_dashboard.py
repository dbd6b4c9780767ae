"""One latent as SAEDashboard describes a feature to Neuronpedia (its stage one), from the evidence index."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from hsae.evidence import Index, LatentEvidence
from hsae.evidence.latent import Context, Histogram
from hsae.inspect.tokens import Pieces
from hsae.sae import SAE
from hsae.unembedding import Unembedding

INTERVALS = 5
"""equal intervals of activation, from 0 to the maximum, that contexts are shown from"""
EACH = 5
"""contexts of an interval, at most"""
ROWS = 10
"""tokens in either column of the logits' table"""
BARS = 50
"""bars of the logits' histogram"""
TABLE = 3
"""rows of the tables of neurons and latents"""


@dataclass(frozen=True)
class Facts:
    """What all features of an export share.

    Attributes:
        sae: at the scale of the activations.
        unit: what the index's activations are multiplied by, to be the exported SAE's.
        unembedding: None where there is no logit lens.
        prompts, length, dataset: what the evidence is from.
    """

    sae: SAE
    index: Index
    pieces: Pieces
    unit: float
    unembedding: Unembedding | None
    prompts: int
    length: int
    dataset: str


def features(facts: Facts, latents: Sequence[int]) -> list[dict[str, Any]]:
    """The features of some latents, floats to 3 places."""
    directions = torch.nn.functional.normalize(facts.sae.W_dec[list(latents)].float(), dim=1)
    logits = [None] * len(latents) if facts.unembedding is None else facts.unembedding.logits(directions).numpy()
    return [_feature(facts, latent, logit) for latent, logit in zip(latents, logits, strict=True)]


def _feature(facts: Facts, latent: int, logits: Float[np.ndarray, "token"] | None) -> dict[str, Any]:
    found, unit = facts.index.latent(latent), facts.unit
    aligned, values, share = _alignment(facts.sae.W_dec[latent].float().numpy())
    near = found.coactive[:TABLE]
    firings = facts.index.firings
    # The cosine of firing or not: the share of this latent's firings, by the other's number of them.
    cosine = [c.share * float(np.sqrt(found.firings / max(int(firings[c.latent]), 1))) for c in near]
    heights, bars = _histogram(logits)
    one = facts.pieces.one
    return {
        "feature_index": latent,
        "neuron_alignment_indices": aligned,
        "neuron_alignment_values": values,
        "neuron_alignment_l1": share,
        # Of the model's dimensions, which an index does not follow.
        "correlated_neurons_indices": [],
        "correlated_neurons_l1": [],
        "correlated_neurons_pearson": [],
        "correlated_features_indices": [c.latent for c in near],
        "correlated_features_l1": _rounded(cosine),
        "correlated_features_pearson": _rounded(c.correlation for c in near),
        "neg_str": [one(use.token) for use in found.suppressed[:ROWS]],
        "neg_values": _rounded(use.logit for use in found.suppressed[:ROWS]),
        "pos_str": [one(use.token) for use in found.promoted[:ROWS]],
        "pos_values": _rounded(use.logit for use in found.promoted[:ROWS]),
        "frac_nonzero": round(found.rate, 5),
        "freq_hist_data_bar_values": _rounded((i + 0.5) * _width(found, unit) for i in range(_bars(found))),
        "freq_hist_data_bar_heights": [float(count) for count in found.histogram.counts],
        "logits_hist_data_bar_heights": heights,
        "logits_hist_data_bar_values": bars,
        "n_prompts_total": facts.prompts,
        "n_tokens_in_prompt": facts.length,
        "dataset": facts.dataset,
        "decoder_weights_dist": [],
        "activations": list(_activations(found, facts)),
        "vector": [],
    }


def _width(found: LatentEvidence, unit: float) -> float:
    return found.histogram.width * unit


def _bars(found: LatentEvidence) -> int:
    return len(found.histogram.counts)


def _alignment(direction: Float[np.ndarray, "width"]) -> tuple[list[int], list[float], list[float]]:
    """The dimensions that a decoder direction adds to most, how much, and their share of its L1 norm."""
    order = np.argsort(-direction, kind="stable")[:TABLE]
    values = direction[order]
    return order.tolist(), _rounded(values), _rounded(np.abs(values) / max(float(np.abs(direction).sum()), 1e-12))


def _histogram(logits: Float[np.ndarray, "token"] | None) -> tuple[list[float], list[float]]:
    """Heights and middles of the bars."""
    if logits is None:
        return [], []
    heights, edges = np.histogram(logits, BARS)
    return [float(height) for height in heights], _rounded((edges[:-1] + edges[1:]) / 2)


def _activations(found: LatentEvidence, facts: Facts) -> list[dict[str, Any]]:
    """The strongest contexts, and then some of each interval of activation, the highest interval first."""
    top = round(found.maximum * facts.unit, 3)
    made = [_activation(context, facts, -1.0, top, -1.0) for context in found.top]
    bounds = [found.maximum * i / INTERVALS for i in range(INTERVALS + 1)]
    for low, high in reversed(list(itertools.pairwise(bounds))):
        within = [context for context in found.samples if low < context.activation <= high][:EACH]
        # The lowest interval has the positions where the latent is silent, as SAEDashboard counts.
        share = above(found.histogram, low) - above(found.histogram, high)
        share = share / found.rows if low else 1 - above(found.histogram, high) / found.rows
        ends = (round(low * facts.unit, 3), round(high * facts.unit, 3), round(share, 5))
        made += [_activation(context, facts, *ends) for context in within]
    return made


def above(histogram: Histogram, level: float) -> float:
    """How many activations are above a level: exact at the ends of bins, between them as if a bin were even."""
    if not histogram.width:
        return 0.0
    place = level / histogram.width
    counts = histogram.counts
    return sum((count * min(max(i + 1 - place, 0.0), 1.0) for i, count in enumerate(counts)), 0.0)


def _activation(context: Context, facts: Facts, low: float, high: float, contains: float) -> dict[str, Any]:
    return {
        "bin_min": low,
        "bin_max": high,
        "bin_contains": contains,
        "tokens": list(facts.pieces(context.tokens)),
        "values": _rounded(value * facts.unit for value in context.activations),
        "qualifying_token_index": context.peak,
    }


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 3) for value in values]
