"""Oja's rule (J. Math. Biol. 15, 1982): ΔW_k = lr · mean over tokens of y_k (x - y_k w_k), with y = W x or the code.

With y = W x every latent finds the first principal component, up to its sign: there is no competition.
"""

from __future__ import annotations

from dataclasses import dataclass

from hsae.config import require
from hsae.rules import Rule, State, Statistics, Synapse, Weights
from hsae.rules._post import Post, count, over_tokens, post


@dataclass(frozen=True)
class Oja(Rule):
    """Hebbian learning with a decay that keeps rows at unit norm."""

    lr: float = 1e-2
    """learning rate"""
    post: Post = "drive"
    """the latents' side of the product: W x, or their code"""

    def __post_init__(self) -> None:
        require(self.lr > 0, "lr", "above 0", self.lr)

    def statistics(self, synapse: Synapse) -> Statistics:
        y = post(synapse, self.post)
        return {"yx": y.T @ synapse.x, "yy": over_tokens(y.square()), "tokens": count(synapse)}

    def displacement(self, statistics: Statistics, weights: Weights, state: State) -> tuple[Weights, State]:
        direction = statistics["yx"] - statistics["yy"][:, None] * weights.W
        return Weights(self.lr * direction / statistics["tokens"]), state
