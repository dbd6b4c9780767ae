"""A delta rule for encoders: winners learn the code at which the competition would settle, given the residual.

A one-pass encoder is taught by the feedback that its own reconstruction leaves. Residual units hold r = x - x̂; feedback
synapses F, one row a latent, bring r back. For the latents that won (code y above 0; p is 0 for all others):

    target        y* = y + F r           one step of settling; p = y* - y is the post-synaptic signal
    runner-up     p = runner_up · F r    for the one silent latent that the residual drives most, if it drives it at all
    encoder       ΔW ∝ p (P x)ᵀ          pre-synaptic activity x, decorrelated among the inputs by P = (C + λI)^-1
    bias          Δb ∝ p                 a synapse from a unit that is always on
    excitability  Δb = homeostasis · clip(1 - rate_k / mean rate, -1, 1), rate_k how often latent k fires
    feedback      ΔF ∝ z (x̂ - z F)       while there is no input and latent k fires alone, by itself (z = 1)

C is the running covariance of the inputs, where the setup takes their mean away. The last line is a weight mirror
(Akrout et al., NeurIPS 2019, arXiv 1904.05391): spontaneous firing sends latent k's decoder row to the residual units,
and its feedback synapses learn what arrives, pre-synaptic x̂ by post-synaptic z. No synapse reads another. F begins at
0. Each latent's rate is divided by the running size of its own plasticity. Nothing depends on the activations' scale.

What is not local to a synapse: P is a matrix of the inputs among themselves, here inverted outright, where a network
would decorrelate by lateral inhibition; the homeostasis compares with the latents' mean rate; and the mirror is
computed as if every latent fired once, alone and without noise, so that F follows the decoder with a lag.

Where it stands to backpropagation: once F mirrors the decoder, p xᵀ over the winners has the direction of the error's
gradient, as in every delta rule of one layer with exact feedback. What differs from gradient descent is that the
feedback is learned, the runner-up, P, the rates and the homeostasis. `feedback` chooses other ways back, to measure
what this one is worth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hsae.across import HERE, Peers
from hsae.config import require
from hsae.rules import Rule, State, Statistics, Synapse, Weights, cleared
from hsae.rules._post import count, over_tokens

# Steps between inversions of the covariance, which changes slowly.
INVERT = 10
# Decay of the running covariance, of the size of each latent's plasticity, and of its firing rate.
COVARIANCE, PLASTICITY, FIRING = 0.95, 0.99, 0.9


@dataclass(frozen=True)
class Delta(Rule):
    """Winners learn to be where feedback from the residual would move them."""

    encoder_only: ClassVar[bool] = True
    sparse: ClassVar[bool] = True
    blind: ClassVar[bool] = False

    lr: float = 0.08
    """learning rate: length of a row's change in a typical step"""
    bias_lr: float = 8.0
    """rate of the bias, in rates of one synapse"""
    runner_up: float = 0.1
    """share at which the silent latent that the residual drives most learns too, in each token; 0: winners alone"""
    homeostasis: float = 0.01
    """rise of a silent latent's bias in a step, in standard deviations of one input"""
    momentum: float = 0.8
    """decay of the running averages of the batches' sums"""
    ridge: float = 0.1
    """λ, in units of the inputs' mean variance"""
    feedback: Literal["mirror", "encoder", "decoder"] = "mirror"
    """what brings the residual back: synapses that mirror the decoder, the encoder's at unit norm, or the decoder's"""
    mirror_lr: float = 0.5
    """learning rate of the mirroring synapses"""

    def __post_init__(self) -> None:
        require(self.lr > 0, "lr", "above 0", self.lr)
        require(self.bias_lr >= 0, "bias_lr", "0 or above", self.bias_lr)
        require(self.runner_up >= 0, "runner_up", "0 or above", self.runner_up)
        require(self.homeostasis >= 0, "homeostasis", "0 or above", self.homeostasis)
        require(0 <= self.momentum < 1, "momentum", "in [0, 1)", self.momentum)
        require(self.ridge > 0, "ridge", "above 0", self.ridge)
        require(0 < self.mirror_lr <= 1, "mirror_lr", "in (0, 1]", self.mirror_lr)

    def start(self, weights: Weights) -> State:
        W = weights.W
        eye, one = torch.eye(W.shape[1], dtype=W.dtype, device=W.device), torch.zeros_like(W[:, 0])
        state = {"step": torch.zeros((), dtype=torch.int64), "px": torch.zeros_like(W), "p": one, "xx": eye, "P": eye}
        state |= {"size": one, "rate": one}
        if self.feedback == "mirror":
            state["feedback"] = torch.zeros_like(W)
        return {key: value.clone() for key, value in state.items()}

    def forget(self, state: State, dead: Bool[Tensor, "latent"], side: str, peers: Peers = HERE) -> State:
        # As fast and as busy as live latents are on average, until they have a history of their own.
        live = ~dead if peers.count(~dead) else torch.ones_like(dead)
        means = {key: peers.mean(state[key][live]) for key in ("size", "rate")}
        new = {key: torch.where(dead, mean, state[key]) for key, mean in means.items()}
        return cleared(state, ["px", "p", "feedback"], dead) | new

    def _feedback(self, synapse: Synapse) -> Float[Tensor, "latent width"]:
        """The synapses that bring the residual back."""
        if self.feedback == "mirror":
            return synapse.state["feedback"]
        rows = synapse.dictionary
        return torch.nn.functional.normalize(synapse.weights.W, dim=1) if self.feedback == "encoder" else rows

    def signal(self, synapse: Synapse) -> Float[Tensor, "token latent"]:
        drive = synapse.residual() @ self._feedback(synapse).T
        won = torch.ops.aten.threshold_backward(drive, synapse.y, 0)
        if self.runner_up:
            value, second = synapse.weights.peers.winner(drive.masked_fill_(synapse.y > 0, -torch.inf))
            won.scatter_add_(1, second, value.clamp_(min=0) * self.runner_up)
        return won

    def _taught(self, synapse: Synapse) -> tuple[Float[Tensor, "latent width"], Float[Tensor, "latent"]]:
        """The signal times the inputs, and the signal, summed over tokens."""
        if synapse.sparse is None:
            p = self.signal(synapse)
            return p.T @ synapse.x, over_tokens(p)
        residual, feedback = synapse.residual(), self._feedback(synapse)
        px, p = torch.zeros_like(feedback), torch.zeros_like(feedback[:, 0])
        synapse.sparse.add(px, synapse.x, synapse.sparse.back(residual, feedback), sums=p)
        if self.runner_up:
            value, second = synapse.sparse.runner_up(residual, feedback)
            value = synapse.weights.peers.among(value[:, None], 1).squeeze(1)
            share = value.clamp_(min=0) * self.runner_up
            px.index_add_(0, second, synapse.x * share[:, None])
            p.index_add_(0, second, share)
        return px, p

    def statistics(self, synapse: Synapse) -> Statistics:
        (px, p), x = self._taught(synapse), synapse.x
        sums = {"px": px, "p": p, "fired": synapse.usage().fired, "xx": x.T @ x}
        if self.feedback == "mirror":
            # What reaches the residual units when each latent fires alone, once for every token.
            sums["mirrored"] = synapse.dictionary * len(x)
        return sums | {"tokens": count(synapse)}

    def displacement(self, statistics: Statistics, weights: Weights, state: State) -> tuple[Weights, State]:
        sums, W = statistics, weights.W
        step = int(state["step"]) + 1
        new = dict(state) | {"step": state["step"] + 1}
        for key in ("px", "p"):
            new[key] = torch.lerp(sums[key], state[key], self.momentum)
        new["xx"] = _average(state["xx"], sums["xx"] / sums["tokens"], COVARIANCE, step)
        if step % INVERT == 1:
            new["P"] = self._decorrelator(new["xx"])
        new["size"] = _average(state["size"], (sums["px"] @ new["P"]).square().sum(1), PLASTICITY, step)
        new["rate"] = _average(state["rate"], sums["fired"] / sums["tokens"], FIRING, step)
        if self.feedback == "mirror":
            new["feedback"] = torch.lerp(state["feedback"], sums["mirrored"] / sums["tokens"], self.mirror_lr)
        pace = self.lr / (new["size"].sqrt() + 1e-30)
        spread = new["xx"].diagonal().mean().sqrt()
        rest = (1 - new["rate"] / weights.peers.mean(new["rate"]).clamp(min=1e-30)).clamp(-1, 1)
        rise = pace * (self.bias_lr / W.shape[1]) * new["p"] + self.homeostasis * spread * rest
        return Weights(pace[:, None] * (new["px"] @ new["P"]), rise), new

    def _decorrelator(self, xx: Float[Tensor, "width width"]) -> Float[Tensor, "width width"]:
        """(C + λI)^-1, scaled so that the decorrelated inputs' mean product with the inputs is 1."""
        eye = torch.eye(len(xx), dtype=xx.dtype, device=xx.device)
        P = torch.linalg.inv(xx + self.ridge * xx.diagonal().mean().clamp(min=1e-30) * eye)
        return P / (P * xx).sum().clamp(min=1e-30)


def _average(old: Tensor, value: Tensor, decay: float, step: int) -> Tensor:
    """A running average without the bias of its start: the plain mean at first, then of that decay."""
    return torch.lerp(old, value, max(1 - decay, 1 / step))
