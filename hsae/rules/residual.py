"""Residual-driven Hebbian learning of a dictionary: active latents move towards what the reconstruction left over.

    ΔW_k ∝ Σ_tokens y_k (r - w_k (w_k · r)),   r = x - x̂

Hebb's rule between the latents' code y and residual units that hold r. The part along the row is left out (Oja); a
step across a row still lengthens it a little, so decoder_norm = "unit" belongs to it. Each latent's rate is divided
by its own activity Σ y_k² plus the latents' mean of that, so that rare ones are neither left behind nor thrown about;
and by √L0, as the latents that fire together all move towards the same residual. With unit rows this is online
dictionary learning by Hebbian synapses: Olshausen and Field, Vision Research 37 (1997), equation 17; Rao and Ballard,
Nat. Neurosci. 2 (1999).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hsae.across import HERE, Peers
from hsae.config import require
from hsae.rules import Rule, State, Statistics, Synapse, Weights, cleared
from hsae.rules._post import count


@dataclass(frozen=True)
class Residual(Rule):
    """Active latents move towards the residual."""

    sparse: ClassVar[bool] = True
    blind: ClassVar[bool] = False

    lr: float = 1.4
    """learning rate: share of the way to a latent's mean residual, times √L0"""
    momentum: float = 0.8
    """decay of the running averages of the batches' sums"""

    def __post_init__(self) -> None:
        require(self.lr > 0, "lr", "above 0", self.lr)
        require(0 <= self.momentum < 1, "momentum", "in [0, 1)", self.momentum)

    def start(self, weights: Weights) -> State:
        return {"yr": torch.zeros_like(weights.W), "yy": torch.zeros_like(weights.W[:, 0])}

    def forget(self, state: State, dead: Bool[Tensor, "latent"], side: str, peers: Peers = HERE) -> State:
        return cleared(state, ["yr", "yy"], dead)

    def statistics(self, synapse: Synapse) -> Statistics:
        usage = synapse.usage()
        sums = {"yr": synapse.explained(), "yy": usage.squares(), "fired": usage.fired.sum()}
        return sums | {"tokens": count(synapse)}

    def displacement(self, statistics: Statistics, weights: Weights, state: State) -> tuple[Weights, State]:
        new = {key: torch.lerp(statistics[key], state[key], self.momentum) for key in ("yr", "yy")}
        l0 = weights.peers.sum(statistics["fired"]) / statistics["tokens"]
        pace = self.lr / l0.clamp(min=1).sqrt()
        return Weights(pace * towards(new["yr"], new["yy"], weights)), new


def towards(
    yr: Float[Tensor, "latent width"], yy: Float[Tensor, "latent"], weights: Weights
) -> Float[Tensor, "latent width"]:
    """Each row's way to its latent's mean residual, across the row. Latents of little activity go a part of it."""
    W = weights.W
    across = yr - ((yr * W).sum(1) / W.square().sum(1).clamp(min=1e-30))[:, None] * W
    return across / (yy + weights.peers.mean(yy) + 1e-30)[:, None]
