"""What a reconstruction and a code are worth. Streaming sums in float64: the result does not depend on the batch size.

Definitions (those of the e2e_sae code, which the Hebbian SAE paper uses, beside robust ones):

    MSE          mean over tokens and dimensions of (x - x̂)²
    EVR          mean over tokens of 1 - ‖x - x̂‖² / ‖x - x̄‖²            (a mean of ratios: heavy-tailed)
    pooled EVR   1 - Σ‖x - x̂‖² / Σ‖x - x̄‖²
    L1           mean over tokens of Σ|code| / width
    L0           mean over tokens of the number of active latents
    dictionary   latents active on at least one of the tokens
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hsae.across import HERE, Peers
from hsae.ranks import Ranks
from hsae.rules import Usage
from hsae.sae import SAE


@dataclass(frozen=True)
class Metrics:
    """Results over some tokens. `loss`: MSE plus the variant's penalty; `evr_std` and `evr_median`: over tokens."""

    tokens: int
    loss: float
    mse: float
    evr: float
    evr_std: float
    evr_median: float
    evr_pooled: float
    l1: float
    l0: float
    dictionary: int


class Meter:
    """Adds up metrics over micro-batches.

    Args:
        centre: x̄, the mean activation that EVR compares with, [width].
        latents: those that are here, of the dictionary.
        peers: who holds the others, and counts the same tokens.
    """

    def __init__(self, centre: Float[Tensor, "width"], latents: int, peers: Peers = HERE) -> None:
        # MPS has no float64.
        self._exact = torch.float32 if centre.device.type == "mps" else torch.float64
        self._centre, self._peers = centre, peers
        self._sums = torch.zeros(4, dtype=self._exact, device=centre.device)
        self.fired = torch.zeros(latents, dtype=self._exact, device=centre.device)
        self._ratios: list[Tensor] = []
        self._tokens = 0

    def add(
        self,
        x: Float[Tensor, "token width"],
        error: Float[Tensor, "token width"],
        usage: Usage,
        penalty: Float[Tensor, ""],
    ) -> None:
        """Count a micro-batch.

        Args:
            x: the activations.
            error: x̂ - x.
            usage: how the latents here fired.
            penalty: the sparsity term of the loss, summed over the tokens and over all latents.
        """
        squared = error.to(self._exact).square().sum(1)
        spread = (x - self._centre).to(self._exact).square().sum(1)
        sums = (squared.sum(), spread.sum(), usage.total, penalty)
        self._sums += torch.stack([value.to(self._exact) for value in sums])
        self._ratios.append(1 - squared / spread)
        self.count(usage, len(x))

    def count(self, usage: Usage, tokens: int, loss: float = 0.0) -> None:
        """Count only which latents fired on so many tokens, and what is known of the loss, summed over them."""
        self.fired += usage.fired
        self._tokens += tokens
        if loss:
            self._sums[0] += loss

    @property
    def loss(self) -> float:
        """The mean of what `count` was told."""
        return self._sums[0].item() / self._tokens

    @property
    def l0(self) -> float:
        """Active latents a token."""
        return self._peers.sum(self.fired.sum()).item() / self._tokens

    def combine(self, ranks: Ranks) -> None:
        """Take in what the other ranks counted on their shares of the tokens."""
        if ranks.size > 1:
            tokens = self._sums.new_tensor(self._tokens)
            self._sums, self.fired, tokens = ranks.sum([self._sums, self.fired, tokens])
            self._tokens = int(tokens)
            if self._ratios:
                self._ratios = ranks.gather(torch.cat(self._ratios))

    def result(self) -> Metrics:
        """The metrics of all that was added."""
        squared, spread, _, penalty = self._sums.tolist()
        l1 = self._peers.sum(self._sums[2]).item()
        ratios = torch.cat(self._ratios)
        tokens, width = self._tokens, len(self._centre)
        mse = squared / (tokens * width)
        return Metrics(
            tokens=tokens,
            loss=mse + penalty / tokens,
            mse=mse,
            evr=ratios.mean().item(),
            evr_std=ratios.std(correction=0).item(),
            evr_median=ratios.median().item(),
            evr_pooled=1 - squared / spread if spread else float("nan"),
            l1=l1 / (tokens * width),
            l0=self.l0,
            dictionary=self._peers.count(self.fired > 0),
        )


def score(sae: SAE, rows: Float[Tensor, "token width"], block: int) -> Metrics:
    """A trained SAE's metrics over tokens, `block` at a time. EVR compares with the mean of these tokens."""
    meter = Meter(rows.cpu().double().mean(0).float().to(rows.device), sae.latents, sae.peers)
    for x in rows.split(block):
        u = torch.addmm(sae.b_enc, x * sae.scale, sae.W_enc.T)
        code = sae.variant.activate(u, sae.parameters, sae.peers)
        penalty = sae.peers.sum(sae.variant.penalty(u, code, sae.width))
        meter.add(x, sae.decode(code) - x, Usage.of(code), penalty)
    return meter.result()
