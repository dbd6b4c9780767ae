"""TopK (Gao et al., arXiv 2406.04093): each token keeps its k highest positive drives; no penalty."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from hsae.across import HERE, Peers
from hsae.config import require
from hsae.sae import NONE, Parameters, Selection, Variant


@dataclass(frozen=True)
class TopK(Variant):
    """The k most driven latents of each token."""

    k: int = 32
    """latents that a token may use"""

    def __post_init__(self) -> None:
        require(self.k >= 1, "k", "1 or above", self.k)

    def activate(
        self, u: Float[Tensor, "token latent"], parameters: Parameters = NONE, peers: Peers = HERE
    ) -> Float[Tensor, "token latent"]:
        value, latent = peers.top(u, self.k)
        return torch.zeros_like(u).scatter_(1, latent, torch.relu(value))

    def selection(self, parameters: Parameters = NONE) -> Selection:
        return Selection(k=self.k)

    def aimed(self, l0: float) -> TopK:
        return replace(self, k=max(1, round(l0)))
