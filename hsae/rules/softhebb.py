"""SoftHebb: a soft winner-take-all with anti-Hebbian losers, as a rule for linear layers.

Moraitis et al., Neuromorph. Comput. Eng. 2 (2022) 044017; Journé et al., arXiv 2209.11883 (the signed form and the
adaptive rate). Per token, with u = W x + b and y = softmax(temperature·u):

    s_k   = +y_k for the winner (the latent of the highest u), -y_k for every other latent
    ΔW_k  ∝ Σ_tokens s_k (x - u_k w_k)        scaled by one number, so that the largest entry of the batch's sum is 1
    Δb_k  ∝ Σ_tokens s_k / e^(temperature·b_k) - tokens        scaled likewise
    rate  = lr · (| ‖w_k‖ - 1 | + 1e-10)^power, for each latent

With a Lebesgue exponent p ≠ 2 the rule's u is sign(W)|W|^(p-1) x + b and the norm the p-norm. The SAE's stays W x + b.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hsae.across import Peers
from hsae.config import require
from hsae.kernels.softhebb import Competition, competition
from hsae.rules import Rule, State, Statistics, Synapse, Weights
from hsae.rules._post import competing, count, over_tokens
from hsae.rules._rates import Normalise, decayed, rates, scaled

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
    normalise: Normalise = "global"
    """scale the batch's sum by its largest entry, each latent's by its own largest, or by the number of tokens"""
    adaptive: bool = True
    """scale each latent's rate by its row's distance from unit norm"""
    power: float = 0.2
    """exponent of that distance"""
    p: float = 2.0
    """Lebesgue exponent of the rule's drive and norm"""
    prior: bool = True
    """learn the latents' bias as a log prior (see bias_init); false: no bias"""
    bias_init: Literal["log_prior", "paper_literal"] = "log_prior"
    """ln(1/latents)/temperature; or temperature/ln(temperature/latents), as the paper's appendix prints it"""
    bias_lr: float = 0.1
    """the bias' rate is lr·bias_lr/temperature; the official code's is 1"""
    bias_arithmetic: Literal["log", "official", "paper_literal"] = "log"
    """by logarithms; as in the official code, where e^(temperature·b) can underflow and all turn into NaN; or with
    e^(b/temperature), as the paper's equation 3 prints it"""
    prior_signed: bool = True
    """the bias learns from s, as published: most fall for ever; false: from y, so that e^(temperature·b) is its mean"""

    def __post_init__(self) -> None:
        require(self.lr > 0, "lr", "above 0", self.lr)
        require(self.temperature > 0, "temperature", "above 0", self.temperature)
        require(self.power >= 0, "power", "0 or above", self.power)
        require(self.p >= 1, "p", "1 or above", self.p)
        require(self.bias_lr >= 0, "bias_lr", "0 or above", self.bias_lr)

    @property
    def competes(self) -> bool:
        return self.p == 2

    def bias(self, latents: int) -> Float[Tensor, "latent"]:
        if not self.prior:
            return torch.zeros(latents)
        if self.bias_init == "paper_literal":
            return torch.full((latents,), self.temperature / math.log(self.temperature / latents))
        return torch.full((latents,), -math.log(latents) / self.temperature)

    def signal(self, synapse: Synapse) -> Float[Tensor, "token latent"]:
        return competition(competing(synapse, self.p), self.temperature, self.signed, synapse.weights.peers)

    def direction(self, signal: Float[Tensor, "token latent"], synapse: Synapse) -> Float[Tensor, "latent width"]:
        return decayed(signal.T @ synapse.x, over_tokens(signal), synapse.weights, self.p)

    def statistics(self, synapse: Synapse) -> Statistics:
        if self.p == 2:
            won = synapse.competition(self.temperature, self.signed)
        else:
            u, peers = competing(synapse, self.p), synapse.weights.peers
            won = Competition.of(u, synapse.x, self.temperature, self.signed, peers)
        sums = {"sx": won.sx, "s": won.s, "tokens": count(synapse)}
        if self.prior and not self.prior_signed:
            sums["y"] = won.y
        return sums

    def displacement(self, statistics: Statistics, weights: Weights, state: State) -> tuple[Weights, State]:
        sx, s, tokens = statistics["sx"], statistics["s"], statistics["tokens"]
        direction = scaled(decayed(sx, s, weights, self.p), tokens, self.normalise, weights.peers)
        rate = rates(weights.W, self.lr, self.adaptive, self.power, self.p)
        b = weights.b if weights.b is not None else torch.zeros_like(s)
        if not self.prior:
            return Weights(rate[:, None] * direction), state
        way = self._bias_direction(statistics.get("y", s), b, tokens, weights.peers)
        change_b = rate * (self.bias_lr / self.temperature) * way
        if self.bias_arithmetic == "log":
            change_b = self._within_range(b, change_b)
        return Weights(rate[:, None] * direction, change_b), state

    def _bias_direction(
        self, s: Float[Tensor, "latent"], b: Float[Tensor, "latent"], tokens: Float[Tensor, ""], peers: Peers
    ) -> Float[Tensor, "latent"]:
        """(s/e^(temperature·b) - tokens) over its largest size; by logarithms: the exponential can underflow."""
        if self.bias_arithmetic != "log":
            prior = (self.temperature * b if self.bias_arithmetic == "official" else b / self.temperature).exp()
            change = (s - tokens * prior) / prior
            return change / (peers.largest(change.abs().max()) + 1e-30)
        log_ratio = s.abs().log() - self.temperature * b
        scale = torch.maximum(peers.largest(log_ratio.max()), tokens.log())
        direction = s.sign() * (log_ratio - scale).exp() - (tokens.log() - scale).exp()
        return direction / (peers.largest(direction.abs().max()) + 1e-30)

    def _within_range(self, b: Float[Tensor, "latent"], change: Float[Tensor, "latent"]) -> Float[Tensor, "latent"]:
        """The change, cut where it would leave the log prior's range. A bias that starts outside may stay there."""
        low, high = (end / self.temperature for end in LOG_PRIOR_RANGE)
        return torch.minimum(torch.maximum(b + change, b.clamp(max=low)), b.clamp(min=high)) - b
