"""Hard winner-take-all: Δw_k ∝ Σ over the tokens that k wins of x - u_k w_k. Only winners learn.

The hard form of SoftHebb (Moraitis et al., Neuromorph. Comput. Eng. 2 (2022) 044017; `HebbHardLinear` in its code): the
winner is the latent of the highest u, ties go to the first. Scale and rate are as in `softhebb`; no bias is learnt.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hsae.config import require
from hsae.rules import Rule, State, Statistics, Synapse, Weights
from hsae.rules._post import by_latent, competing, count
from hsae.rules._rates import Normalise, decayed, rates, scaled


@dataclass(frozen=True)
class WTA(Rule):
    """Hard winner-take-all: the winner moves towards the input, on the unit sphere; no other latent moves."""

    lr: float = 1e-2
    """the largest change of a weight in one step, before the adaptive rate"""
    normalise: Normalise = "global"
    """scale the batch's sum by its largest entry, each latent's by its own largest, or by the number of tokens"""
    adaptive: bool = True
    """scale each latent's rate by its row's distance from unit norm"""
    power: float = 0.2
    """exponent of that distance"""

    def __post_init__(self) -> None:
        require(self.lr > 0, "lr", "above 0", self.lr)
        require(self.power >= 0, "power", "0 or above", self.power)

    def statistics(self, synapse: Synapse) -> Statistics:
        latents = len(synapse.weights.W)
        token, winner = synapse.weights.peers.ranked(competing(synapse), 1)
        wins = torch.bincount(winner, minlength=latents).to(synapse.x.dtype)
        return {"sx": by_latent(synapse.x[token], winner, latents), "s": wins, "tokens": count(synapse)}

    def displacement(self, statistics: Statistics, weights: Weights, state: State) -> tuple[Weights, State]:
        direction = decayed(statistics["sx"], statistics["s"], weights)
        rate = rates(weights.W, self.lr, self.adaptive, self.power)
        change = rate[:, None] * scaled(direction, statistics["tokens"], self.normalise, weights.peers)
        return Weights(change), state
