"""Oja's subspace rule (Oja, Int. J. Neural Syst. 1, 1989): ΔW = lr · mean over tokens of y xᵀ - y yᵀ W.

That is y eᵀ with e = x - Wᵀ y, which never needs y yᵀ. With y = W x the rows become an orthonormal basis of the
principal subspace; which one depends on where they start. More latents than dimensions: WᵀW becomes the identity.
"""

from __future__ import annotations

from dataclasses import dataclass

from hsae.config import require
from hsae.rules import Rule, State, Statistics, Synapse, Weights
from hsae.rules._post import Post, count, post


@dataclass(frozen=True)
class Subspace(Rule):
    """Hebbian learning on what all latents together leave of the input."""

    lr: float = 1e-3
    """learning rate"""
    post: Post = "drive"
    """the latents' side of the product: W x, or their code"""

    def __post_init__(self) -> None:
        require(self.lr > 0, "lr", "above 0", self.lr)

    def statistics(self, synapse: Synapse) -> Statistics:
        y, weights = post(synapse, self.post), synapse.weights
        error = weights.peers.addmm(synapse.x, y, weights.W, alpha=-1)
        return {"direction": y.T @ error, "tokens": count(synapse)}

    def displacement(self, statistics: Statistics, weights: Weights, state: State) -> tuple[Weights, State]:
        return Weights(self.lr * statistics["direction"] / statistics["tokens"]), state
