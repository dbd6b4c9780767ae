"""Backpropagation: the statistics are the gradients, the displacement is Adam's.

Adam as Kingma & Ba, arXiv 1412.6980, Algorithm 1. The gradient's norm, over everything in one SAE that learns by
backpropagation, is clipped first. Gradients are those of the loss averaged over the batch's tokens. Weight decay is for
matrices, not for biases or a variant's own parameters: γW joins the clipped gradient (L2), or is taken from W beside
Adam, times the learning rate (decoupled: Loshchilov & Hutter, arXiv 1711.05101).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hsae.across import HERE, Peers
from hsae.config import later, require
from hsae.kernels.adam import adam
from hsae.rules import Part, Rule, State, Statistics, Synapse, Weights, cleared
from hsae.rules._post import count


@dataclass(frozen=True)
class Backprop(Rule):
    """Gradient descent on the SAE's loss, by Adam."""

    sparse: ClassVar[bool] = True
    blind: ClassVar[bool] = False

    lr: float = 1e-2
    """learning rate"""
    beta1: float = 0.9
    """decay of the mean of the gradient"""
    beta2: float = 0.999
    """decay of the mean of its square"""
    eps: float = 1e-8
    """added to the root of the mean square"""
    clip: float = 1.0
    """largest norm of the gradient; 0 never clips"""
    weight_decay: float = later(0.0)
    """γ, decay of the matrix"""
    decoupled: bool = later(False)
    """decay beside Adam (AdamW), not by way of the gradient"""

    def __post_init__(self) -> None:
        require(self.lr > 0, "lr", "above 0", self.lr)
        require(0 <= self.beta1 < 1, "beta1", "in [0, 1)", self.beta1)
        require(0 <= self.beta2 < 1, "beta2", "in [0, 1)", self.beta2)
        require(self.eps > 0, "eps", "above 0", self.eps)
        require(self.clip >= 0, "clip", "0 or above", self.clip)
        require(self.weight_decay >= 0, "weight_decay", "0 or above", self.weight_decay)
        require(self.weight_decay > 0 or not self.decoupled, "decoupled", "false without weight_decay", self.decoupled)

    def start(self, weights: Weights) -> State:
        state = {"step": torch.zeros((), dtype=torch.int64)}
        for name, value in weights.items().items():
            state |= {f"{name}.mean": torch.zeros_like(value), f"{name}.square": torch.zeros_like(value)}
        return state

    def forget(self, state: State, dead: Bool[Tensor, "latent"], side: str, peers: Peers = HERE) -> State:
        return cleared(state, [key for key, value in state.items() if _by_latent(side, key, value)], dead)

    def statistics(self, synapse: Synapse) -> Statistics:
        return synapse.gradient().items() | {"tokens": count(synapse)}

    @classmethod
    def step(cls, parts: Mapping[str, Part]) -> dict[str, tuple[Weights, State]]:
        norms = [
            g.norm() / p.statistics["tokens"]
            for side, p in parts.items()
            for key, g in _gradients(p.statistics).items()
            # What every rank has alike counts once.
            if _by_latent(side, key, g) or not p.weights.peers.ranks.rank
        ]
        norm = next(iter(parts.values())).weights.peers.length(torch.stack(norms).norm())
        return {name: p.rule._clipped_adam(norm, p) for name, p in parts.items()}  # pyright: ignore[reportAttributeAccessIssue]

    def displacement(self, statistics: Statistics, weights: Weights, state: State) -> tuple[Weights, State]:
        return self.step({"": Part(self, statistics, weights, state)})[""]

    def _clipped_adam(self, norm: Float[Tensor, ""], part: Part) -> tuple[Weights, State]:
        state, tokens = part.state, part.statistics["tokens"]
        # Tensors, so that a GPU never waits for the host. The loss is a mean over tokens, its gradients came as sums.
        factor = ((self.clip / (norm + 1e-6)).clamp(max=1.0) if self.clip else torch.ones_like(norm)) / tokens
        step = state["step"] + 1
        new, moves = dict(state) | {"step": step}, {}
        rates = {"lr": self.lr, "betas": (self.beta1, self.beta2), "eps": self.eps}
        for name, value in _gradients(part.statistics).items():
            moments, scale = (state[f"{name}.mean"], state[f"{name}.square"]), factor
            decay = self.weight_decay if name == "W" else 0.0
            if decay and not self.decoupled:
                value, scale = torch.add(value * factor, part.weights.W, alpha=decay), torch.ones_like(factor)
            moves[name], new[f"{name}.mean"], new[f"{name}.square"] = adam(
                value, *moments, factor=scale, step=step, **rates
            )
            if decay and self.decoupled:
                moves[name] = torch.sub(moves[name], part.weights.W, alpha=self.lr * decay)
        return Weights.of(moves), new


def _by_latent(side: str, key: str, value: Tensor) -> bool:
    """Whether a tensor has a row a latent: a decoder's bias has none, nor has a number that the variant has one of."""
    return value.ndim > 0 and not (side == "decoder" and key.split(".")[0] == "b")


def _gradients(sums: Statistics) -> Statistics:
    return {key: value for key, value in sums.items() if key != "tokens"}
