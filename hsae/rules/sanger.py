"""Sanger's rule, the generalised Hebbian algorithm (Neural Networks 2, 1989): ΔW = lr · mean(y xᵀ - LT(y yᵀ) W).

LT keeps the lower triangle with the diagonal. Latent k sees what the latents up to it leave of x:
Δw_k = lr · mean of y_k (x - Σ_{i≤k} y_i w_i). With y = W x the rows become the principal components, in order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hsae.config import require
from hsae.rules import Rule, State, Statistics, Synapse, Weights
from hsae.rules._post import Post, count, post

# Latents taken at once. It bounds the triangle, [chunk, chunk], whatever the number of latents.
CHUNK = 512


@dataclass(frozen=True)
class Sanger(Rule):
    """Principal components in order: each latent learns what those before it leave."""

    lr: float = 1e-3
    """learning rate"""
    post: Post = "drive"
    """the latents' side of the product: W x, or their code"""

    def __post_init__(self) -> None:
        require(self.lr > 0, "lr", "above 0", self.lr)

    def statistics(self, synapse: Synapse) -> Statistics:
        y, weights = post(synapse, self.post), synapse.weights
        direction = in_order(weights.peers.left(synapse.x, y, weights.W), y, weights.W)
        return {"direction": direction, "tokens": count(synapse)}

    def displacement(self, statistics: Statistics, weights: Weights, state: State) -> tuple[Weights, State]:
        return Weights(self.lr * statistics["direction"] / statistics["tokens"]), state


def in_order(
    x: Float[Tensor, "token width"],
    y: Float[Tensor, "token latent"],
    W: Float[Tensor, "latent width"],
    chunk: int = CHUNK,
) -> Float[Tensor, "latent width"]:
    """The sum over tokens of y xᵀ - LT(y yᵀ) W, by chunks of latents: each starts from what the earlier ones leave."""
    rest = x.clone()
    rows = []
    for y_part, W_part in zip(y.split(chunk, dim=1), W.split(chunk), strict=True):
        within = (y_part.T @ y_part).tril_()
        rows.append(torch.addmm(y_part.T @ rest, within, W_part, alpha=-1))
        rest.addmm_(y_part, W_part, alpha=-1)
    return torch.cat(rows)
