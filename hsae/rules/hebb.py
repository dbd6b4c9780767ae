"""Plain Hebbian learning (Hebb, The Organization of Behavior, 1949) with decay and a bound on each step:

    ΔW = lr · (clamp(mean over tokens of y xᵀ) - decay · W)

Without the bound the rule is linear in W: it can only fade or grow for ever. With it, no weight passes clamp / decay
(but for one that starts beyond).
"""

from __future__ import annotations

from dataclasses import dataclass

from hsae.config import require
from hsae.rules import Rule, State, Statistics, Synapse, Weights
from hsae.rules._post import Post, count, post


@dataclass(frozen=True)
class Hebb(Rule):
    """Fires together, wires together."""

    lr: float = 1e-2
    """learning rate"""
    decay: float = 1e-2
    """weight decay; without it the weights grow for ever"""
    clamp: float = 1.0
    """largest size of an entry of the batch's mean y xᵀ; 0: no bound"""
    post: Post = "drive"
    """the latents' side of the product: W x, or their code"""

    def __post_init__(self) -> None:
        require(self.lr > 0, "lr", "above 0", self.lr)
        require(self.decay >= 0, "decay", "0 or above", self.decay)
        require(self.clamp >= 0, "clamp", "0 or above", self.clamp)

    def statistics(self, synapse: Synapse) -> Statistics:
        return {"yx": post(synapse, self.post).T @ synapse.x, "tokens": count(synapse)}

    def displacement(self, statistics: Statistics, weights: Weights, state: State) -> tuple[Weights, State]:
        hebbian = statistics["yx"] / statistics["tokens"]
        if self.clamp:
            hebbian = hebbian.clamp(-self.clamp, self.clamp)
        return Weights(self.lr * (hebbian - self.decay * weights.W)), state
