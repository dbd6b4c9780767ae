"""BCM, the sliding threshold (Bienenstock, Cooper & Munro, J. Neurosci. 2, 1982; quadratic as Intrator & Cooper, 1992):

    θ_k  ← θ_k + alpha · (mean over tokens of y_k² - θ_k)
    ΔW_k = lr · mean over tokens of y_k (y_k - θ_k) x

A latent becomes selective: on few inputs it answers strongly, on the rest not at all. The threshold must be faster than
the weights, and is brought up to date first; it starts at 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from hsae.across import HERE, Peers
from hsae.config import require
from hsae.rules import Rule, State, Statistics, Synapse, Weights, cleared
from hsae.rules._post import Post, count, over_tokens, post


@dataclass(frozen=True)
class BCM(Rule):
    """Strong answers are reinforced, weak ones suppressed; what is strong depends on the latent's past."""

    lr: float = 1e-3
    """learning rate"""
    alpha: float = 0.1
    """share of the way that the threshold goes to the batch's mean square in each step"""
    post: Post = "drive"
    """the latents' side of the product: W x, or their code"""

    def __post_init__(self) -> None:
        require(self.lr > 0, "lr", "above 0", self.lr)
        require(0 < self.alpha <= 1, "alpha", "in (0, 1]", self.alpha)

    def start(self, weights: Weights) -> State:
        return {"theta": torch.zeros_like(weights.W[:, 0])}

    def forget(self, state: State, dead: Bool[Tensor, "latent"], side: str, peers: Peers = HERE) -> State:
        return cleared(state, ["theta"], dead)

    def statistics(self, synapse: Synapse) -> Statistics:
        y, x = post(synapse, self.post), synapse.x
        square = y.square()
        return {"yyx": square.T @ x, "yx": y.T @ x, "yy": over_tokens(square), "tokens": count(synapse)}

    def displacement(self, statistics: Statistics, weights: Weights, state: State) -> tuple[Weights, State]:
        yyx, yx, yy = (statistics[key] / statistics["tokens"] for key in ("yyx", "yx", "yy"))
        theta = torch.lerp(state["theta"], yy, self.alpha)
        return Weights(self.lr * (yyx - theta[:, None] * yx)), {"theta": theta}
