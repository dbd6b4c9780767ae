"""Gated SAE (Rajamanoharan et al., arXiv 2404.16014): one drive decides which latents are active, another how much.

With u = W_enc x + b_enc (their gate, π): code = ReLU(e^r · u + m) where u > 0, else 0; r and m have a number a latent.
Their magnitude bias is m + e^r · b_enc here: the same functions. The loss, a token, with ReLU(u) = g:

    ‖x̂ - x‖² / width  +  l1 · Σ g / width  +  ‖g W_dec + b_dec - x‖² / width, the decoder held fixed in the last
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from hsae.across import HERE, Peers
from hsae.config import require
from hsae.sae import NONE, Parameters, Variant


@dataclass(frozen=True)
class Gated(Variant):
    """A gate that is penalised, and a magnitude that is not."""

    pointwise: ClassVar[bool] = True
    trained: ClassVar[bool] = True
    penalised: ClassVar[bool] = True
    masks: ClassVar[bool] = False
    proxied: ClassVar[bool] = True

    l1: float = 1e-2
    """weight of the L1 penalty on the gate, on Σ ReLU(u) / width"""

    def __post_init__(self) -> None:
        require(self.l1 >= 0, "l1", "0 or above", self.l1)

    def parameters(self, latents: int) -> dict[str, Tensor]:
        return {"log_gain": torch.zeros(latents), "magnitude_bias": torch.zeros(latents)}

    def activate(
        self, u: Float[Tensor, "token latent"], parameters: Parameters = NONE, peers: Peers = HERE
    ) -> Float[Tensor, "token latent"]:
        magnitude = torch.addcmul(parameters["magnitude_bias"], parameters["log_gain"].exp(), u).relu_()
        return torch.where(u > 0, magnitude, 0)

    def proxy(self, u: Float[Tensor, "token latent"]) -> Float[Tensor, "token latent"]:
        return torch.relu(u)

    def penalty(
        self, u: Float[Tensor, "token latent"], code: Float[Tensor, "token latent"], width: int
    ) -> Float[Tensor, ""]:
        return self.l1 * torch.relu(u).sum() / width

    def backward(
        self,
        u: Float[Tensor, "token latent"],
        code: Float[Tensor, "token latent"],
        gradient: Float[Tensor, "token latent"],
        width: int,
        parameters: Parameters = NONE,
        proxy: Float[Tensor, "token latent"] | None = None,
    ) -> tuple[Float[Tensor, "token latent"], dict[str, Tensor]]:
        assert proxy is not None, "a gated SAE learns its gate through the proxy"
        gain = parameters["log_gain"].exp()
        through = torch.ops.aten.threshold_backward(gradient, code, 0)
        own = {"log_gain": gain * (through * u).sum(0), "magnitude_bias": through.sum(0)}
        of_gate = torch.ops.aten.threshold_backward(proxy.add_(self.l1 / width), u, 0)
        # The step at u = 0 passes no gradient: u learns through the magnitude where active, and through the gate.
        return of_gate.addcmul_(through, gain), own

    def weighted(self, factor: float) -> Gated:
        return replace(self, l1=self.l1 * factor)

    def rescaled(self, parameters: Parameters, scale: float) -> dict[str, Tensor]:
        return {"log_gain": parameters["log_gain"], "magnitude_bias": parameters["magnitude_bias"] / scale}
