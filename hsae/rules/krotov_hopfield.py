"""Competing hidden units (Krotov & Hopfield, PNAS 116 (16), 2019), with the Lebesgue exponent p.

A token's latents are ranked by u; g is 1 for the first, -delta for the k-th and 0 for the rest. With
⟨w, x⟩ = Σ_i sign(w_i) |w_i|^(p-1) x_i:

    exact   ΔW_k = lr · mean over tokens of g_k (R^p x - ⟨w_k, x⟩ w_k)      pulls the rows' p-norm to R
    fast    ΔW_k = lr · D_k / max |D|,  D_k = Σ g_k (x - ⟨w_k, x⟩ w_k)      as github.com/DimaKrotov/Biological_Learning

The encoder's u is ⟨w, x⟩ + b. A decoder's latents are ranked by the encoder's u.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hsae.config import require
from hsae.rules import Rule, State, Statistics, Synapse, Weights
from hsae.rules._post import by_latent, competing, count, lebesgue
from hsae.rules._rates import scaled


@dataclass(frozen=True)
class KrotovHopfield(Rule):
    """The winner learns towards the input, a runner-up away from it."""

    lr: float = 2e-2
    """fast: the largest change of a weight in one step; exact: the learning rate"""
    form: Literal["fast", "exact"] = "fast"
    """the published code's, scaled by its largest entry; or the paper's equation"""
    p: float = 2.0
    """Lebesgue exponent: rows are drawn to the unit sphere of the p-norm"""
    k: int = 2
    """rank of the latent that unlearns; with fewer latents, none does"""
    delta: float = 0.4
    """how much it unlearns, beside the winner's 1"""
    radius: float = 1.0
    """exact: the p-norm that rows are drawn to, R; fast: always 1"""

    def __post_init__(self) -> None:
        require(self.lr > 0, "lr", "above 0", self.lr)
        require(self.p >= 1, "p", "1 or above", self.p)
        require(self.k >= 2, "k", "2 or above", self.k)
        require(self.delta >= 0, "delta", "0 or above", self.delta)
        require(self.radius > 0, "radius", "above 0", self.radius)
        require(self.form == "exact" or self.radius == 1, "radius", "1 with form fast", self.radius)

    def statistics(self, synapse: Synapse) -> Statistics:
        u, x = competing(synapse, self.p), synapse.x
        latents, peers = u.shape[1], synapse.weights.peers
        token, winner = peers.ranked(u, 1)
        gx = by_latent(x[token], winner, latents)
        if self.delta and self.k <= peers.whole(latents):
            token, loser = peers.ranked(u, self.k)
            gx -= self.delta * by_latent(x[token], loser, latents)
        return {"gx": gx, "tokens": count(synapse)}

    def displacement(self, statistics: Statistics, weights: Weights, state: State) -> tuple[Weights, State]:
        gx, W = statistics["gx"], weights.W
        # Σ g ⟨w, x⟩ is ⟨w, Σ g x⟩.
        decay = (lebesgue(W, self.p) * gx).sum(1, keepdim=True)
        direction = self.radius**self.p * gx - decay * W
        normalise = "global" if self.form == "fast" else "mean"
        return Weights(self.lr * scaled(direction, statistics["tokens"], normalise, weights.peers)), state
