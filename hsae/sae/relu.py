"""The plain SAE: ReLU, and an L1 penalty of l1 · Σ|code| / width a token (not divided by the dictionary's size)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from hsae.across import HERE, Peers
from hsae.config import require
from hsae.sae import NONE, Parameters, Selection, Variant


@dataclass(frozen=True)
class ReLU(Variant):
    """ReLU code with an L1 penalty."""

    pointwise: ClassVar[bool] = True
    penalised: ClassVar[bool] = True
    masks: ClassVar[bool] = False

    l1: float = 1e-2
    """weight of the L1 penalty, on Σ|code| / width"""

    def __post_init__(self) -> None:
        require(self.l1 >= 0, "l1", "0 or above", self.l1)

    def activate(
        self, u: Float[Tensor, "token latent"], parameters: Parameters = NONE, peers: Peers = HERE
    ) -> Float[Tensor, "token latent"]:
        return torch.relu(u)

    def selection(self, parameters: Parameters = NONE) -> Selection:
        return Selection(l1=self.l1)

    def penalty(
        self, u: Float[Tensor, "token latent"], code: Float[Tensor, "token latent"], width: int
    ) -> Float[Tensor, ""]:
        return self.l1 * code.sum() / width

    def backward(
        self,
        u: Float[Tensor, "token latent"],
        code: Float[Tensor, "token latent"],
        gradient: Float[Tensor, "token latent"],
        width: int,
        parameters: Parameters = NONE,
        proxy: Float[Tensor, "token latent"] | None = None,
    ) -> tuple[Float[Tensor, "token latent"], dict[str, Tensor]]:
        # One pass: the gradient where the code is above 0, else 0.
        return torch.ops.aten.threshold_backward(gradient.add_(self.l1 / width), code, 0), {}

    def weighted(self, factor: float) -> ReLU:
        return replace(self, l1=self.l1 * factor)
