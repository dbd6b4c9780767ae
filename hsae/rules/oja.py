"""Oja's rule (J. Math. Biol. 15, 1982): ΔW_k = lr · mean over tokens of y_k (x - y_k w_k), with y = W x.

Every latent finds the first principal component, up to its sign: there is no competition.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hsae.config import require
from hsae.rules import Rule, State, Statistics, Synapse, Weights


@dataclass(frozen=True)
class Oja(Rule):
    """Hebbian learning with a decay that keeps rows at unit norm."""

    lr: float = 1e-2
    """learning rate"""

    def __post_init__(self) -> None:
        require(self.lr > 0, "lr", "above 0", self.lr)

    def statistics(self, synapse: Synapse) -> Statistics:
        y = synapse.u if synapse.weights.b is None else synapse.u - synapse.weights.b
        tokens = torch.tensor(float(len(y)), device=y.device)
        return {"yx": y.T @ synapse.x, "yy": y.square().sum(0), "tokens": tokens}

    def displacement(self, statistics: Statistics, weights: Weights, state: State) -> tuple[Weights, State]:
        direction = statistics["yx"] - statistics["yy"][:, None] * weights.W
        return Weights(self.lr * direction / statistics["tokens"]), state
