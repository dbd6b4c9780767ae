"""SoftHebb: a soft winner-take-all with anti-Hebbian losers, as a rule for linear layers.

Moraitis et al., Neuromorph. Comput. Eng. 2 (2022) 044017; Journé et al., arXiv 2209.11883 (the signed form and the
adaptive rate). Here for the Lebesgue exponent p = 2. Per token, with u = W x + b and y = softmax(temperature·u):

    s_k   = +y_k for the winner (the latent of the highest u), -y_k for every other latent
    ΔW_k  ∝ Σ_tokens s_k (x - u_k w_k)        scaled by one number, so that the largest entry of the batch's sum is 1
    Δb_k  ∝ Σ_tokens s_k / e^(temperature·b_k) - tokens        scaled likewise
    rate  = lr · (| ‖w_k‖ - 1 | + 1e-10)^power, for each latent

Σ s_k u_k needs no pass over [token, latent] of its own: it is w_k · (Σ s_k x) + b_k Σ s_k.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hsae.config import require
from hsae.rules import Rule, State, Statistics, Synapse, Weights

# e^(temperature·b) is a prior probability: it stays in [e^-60, 1]. Much lower, float32 would make it 0 and Δb infinite.
LOG_PRIOR_RANGE = (-60.0, 0.0)


@dataclass(frozen=True)
class SoftHebb(Rule):
    """Soft winner-take-all: the winner moves towards the input, the losers away, each by its share of a softmax."""

    lr: float = 1e-2
    """the largest change of a weight in one step, before the adaptive rate"""
    temperature: float = 50.0
    """inverse temperature of the softmax over latents"""
    signed: bool = True
    """losers learn with the opposite sign (Krotov); false: all learn with the winner's"""
    normalise: Literal["global", "row", "mean"] = "global"
    """scale the batch's sum by its largest entry, each latent's by its own largest, or by the number of tokens"""
    adaptive: bool = True
    """scale each latent's rate by its row's distance from unit norm"""
    power: float = 0.2
    """exponent of that distance"""
    prior: bool = True
    """learn the latents' bias as a log prior (see bias_init); false: no bias"""
    bias_init: Literal["log_prior", "paper_literal"] = "log_prior"
    """ln(1/latents)/temperature; or temperature/ln(temperature/latents), as the paper's appendix prints it"""
    bias_lr: float = 0.1
    """the bias' rate is lr·bias_lr/temperature; the official code's is 1"""

    def __post_init__(self) -> None:
        require(self.lr > 0, "lr", "above 0", self.lr)
        require(self.temperature > 0, "temperature", "above 0", self.temperature)
        require(self.power >= 0, "power", "0 or above", self.power)
        require(self.bias_lr >= 0, "bias_lr", "0 or above", self.bias_lr)

    def bias(self, latents: int) -> Float[Tensor, "latent"]:
        if not self.prior:
            return torch.zeros(latents)
        if self.bias_init == "paper_literal":
            return torch.full((latents,), self.temperature / math.log(self.temperature / latents))
        return torch.full((latents,), -math.log(latents) / self.temperature)

    def statistics(self, synapse: Synapse) -> Statistics:
        s = competition(synapse.u, self.temperature, self.signed)
        tokens = torch.tensor(float(len(s)), device=s.device)
        # A product with a row of ones is many times faster than PyTorch's sum over the first dimension.
        return {"sx": s.T @ synapse.x, "s": (s.new_ones(1, len(s)) @ s).squeeze(0), "tokens": tokens}

    def displacement(self, statistics: Statistics, weights: Weights, state: State) -> tuple[Weights, State]:
        sx, s, tokens = statistics["sx"], statistics["s"], statistics["tokens"]
        W, b = weights.W, weights.b if weights.b is not None else torch.zeros_like(s)
        su = (W * sx).sum(1) + b * s
        direction = self._scaled(sx - su[:, None] * W, tokens)
        rate = torch.full_like(s, self.lr)
        if self.adaptive:
            rate = rate * ((W.norm(dim=1) - 1).abs() + 1e-10) ** self.power
        change_b = rate * (self.bias_lr / self.temperature) * self._bias_direction(s, b, tokens)
        return Weights(rate[:, None] * direction, self._within_range(b, change_b) if self.prior else None), state

    def _scaled(
        self, direction: Float[Tensor, "latent width"], tokens: Float[Tensor, ""]
    ) -> Float[Tensor, "latent width"]:
        if self.normalise == "mean":
            return direction / tokens
        if self.normalise == "row":
            return direction / (direction.abs().amax(1, keepdim=True) + 1e-30)
        return direction / (direction.abs().max() + 1e-30)

    def _bias_direction(
        self, s: Float[Tensor, "latent"], b: Float[Tensor, "latent"], tokens: Float[Tensor, ""]
    ) -> Float[Tensor, "latent"]:
        """(s/e^(temperature·b) - tokens) over its largest size, by logarithms: the exponential can be 0 in float32."""
        log_ratio = s.abs().log() - self.temperature * b
        scale = torch.maximum(log_ratio.max(), tokens.log())
        direction = s.sign() * (log_ratio - scale).exp() - (tokens.log() - scale).exp()
        return direction / (direction.abs().max() + 1e-30)

    def _within_range(self, b: Float[Tensor, "latent"], change: Float[Tensor, "latent"]) -> Float[Tensor, "latent"]:
        """The change, cut where it would leave the log prior's range. A bias that starts outside may stay there."""
        low, high = (end / self.temperature for end in LOG_PRIOR_RANGE)
        return torch.minimum(torch.maximum(b + change, b.clamp(max=low)), b.clamp(min=high)) - b


def competition(u: Float[Tensor, "token latent"], temperature: float, signed: bool) -> Float[Tensor, "token latent"]:
    """The post-synaptic signal: softmax(temperature·u) over latents; with `signed` all but the winner negated.

    Ties go to the first latent.
    """
    s = torch.softmax(temperature * u, dim=-1)
    if signed:
        winner = u.argmax(dim=-1, keepdim=True)
        won = s.gather(-1, winner)
        s.neg_().scatter_(-1, winner, won)
    return s
