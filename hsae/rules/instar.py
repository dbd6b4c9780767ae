"""Competitive instar (Grossberg, Biol. Cybern. 23, 1976): Δw_k ∝ Σ over tokens of y_k (x - w_k).

Each row moves to the mean of the inputs that its latent answers to. y is the competition's outcome:

    mask   1 for the k latents of the highest u, 0 for the rest: k-winners-take-all; k = 1 is online k-means
    soft   softmax(temperature·u) over latents
    code   the latents' own code
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hsae.config import require
from hsae.rules import Rule, State, Statistics, Synapse, Weights
from hsae.rules._post import competing, count, over_tokens


@dataclass(frozen=True)
class Instar(Rule):
    """Rows become means of what their latents win."""

    lr: float = 1e-2
    """learning rate"""
    competition: Literal["mask", "soft", "code"] = "mask"
    """who learns: the k most driven latents alike; all, by their share of a softmax; or each by its code"""
    k: int = 1
    """winners of each token, for mask"""
    temperature: float = 50.0
    """inverse temperature of the softmax, for soft"""
    normalise: Literal["use", "tokens"] = "use"
    """divide a latent's sum by its y's sum, so that rare latents learn as fast as frequent ones; or by the tokens"""

    def __post_init__(self) -> None:
        require(self.lr > 0, "lr", "above 0", self.lr)
        require(self.k >= 1, "k", "1 or above", self.k)
        require(self.temperature > 0, "temperature", "above 0", self.temperature)

    def statistics(self, synapse: Synapse) -> Statistics:
        y = self._outcome(synapse)
        return {"yx": y.T @ synapse.x, "y": over_tokens(y), "tokens": count(synapse)}

    def displacement(self, statistics: Statistics, weights: Weights, state: State) -> tuple[Weights, State]:
        yx, y = statistics["yx"], statistics["y"]
        direction = yx - y[:, None] * weights.W
        # A latent that answered to nothing has a direction of 0, and stays where it is.
        per = y.clamp(min=1e-30)[:, None] if self.normalise == "use" else statistics["tokens"]
        return Weights(self.lr * direction / per), state

    def _outcome(self, synapse: Synapse) -> Float[Tensor, "token latent"]:
        if self.competition == "code":
            return synapse.y
        u, peers = competing(synapse), synapse.weights.peers
        if self.competition == "soft":
            return peers.softmax(self.temperature * u)
        value, winners = peers.top(u, self.k)
        return torch.zeros_like(u).scatter_(1, winners, (value > -torch.inf).to(u.dtype))
