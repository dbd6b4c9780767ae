"""The linear tied autoencoder's anti-gradient: ΔW = lr · mean over tokens of y eᵀ + (W e) xᵀ, with e = x - Wᵀ y.

For y = W x that is -∂/∂W ½‖x - WᵀW x‖². The first term, by way of the decoder, is Oja's subspace rule; the second comes
by way of the encoder. With the code for y it is straight-through: as if the activation function's slope was 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hsae.config import require
from hsae.rules import Rule, State, Statistics, Synapse, Weights
from hsae.rules._post import Post, count, post


@dataclass(frozen=True)
class TiedLinear(Rule):
    """Gradient descent on the reconstruction of a linear tied autoencoder, as two Hebbian products."""

    lr: float = 1e-3
    """learning rate"""
    post: Post = "drive"
    """the latents' side of the product: W x, or their code"""

    def __post_init__(self) -> None:
        require(self.lr > 0, "lr", "above 0", self.lr)

    def statistics(self, synapse: Synapse) -> Statistics:
        x, W = synapse.x, synapse.weights.W
        y = post(synapse, self.post)
        error = synapse.weights.peers.addmm(x, y, W, alpha=-1)
        # Σ (W e) xᵀ is W (Σ e xᵀ): [width, width] in between, and no second [token, latent].
        return {"direction": torch.addmm(y.T @ error, W, error.T @ x), "tokens": count(synapse)}

    def displacement(self, statistics: Statistics, weights: Weights, state: State) -> tuple[Weights, State]:
        return Weights(self.lr * statistics["direction"] / statistics["tokens"]), state
