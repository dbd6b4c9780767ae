"""JumpReLU (Rajamanoharan et al., arXiv 2407.14435): a learned threshold a latent, and a penalty on L0 itself.

code = u where u > θ, else 0; penalty l0 · Σ 1[u > θ] / width a token. Steps have no gradient; for θ it is estimated in
a band of width ε around the threshold (their equations 11 and 12, with a rectangle as the kernel):

    ∂code/∂θ ≈ -θ/ε · 1[|u - θ| < ε/2]        ∂1[u > θ]/∂θ ≈ -1/ε · 1[|u - θ| < ε/2]
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from hsae.across import HERE, Peers
from hsae.config import require
from hsae.sae import NONE, Parameters, Variant


@dataclass(frozen=True)
class JumpReLU(Variant):
    """ReLU that is 0 up to a learned threshold, with a penalty on the number of active latents."""

    pointwise: ClassVar[bool] = True
    trained: ClassVar[bool] = True
    penalised: ClassVar[bool] = True

    l0: float = 5e-5
    """weight of the penalty, on the number of active latents / width"""
    threshold: float = 1e-2
    """threshold that training starts from, in units of the scaled activations"""
    bandwidth: float = 1e-2
    """width of the band in which the threshold's gradient is estimated, in the same units"""

    def __post_init__(self) -> None:
        require(self.l0 >= 0, "l0", "0 or above", self.l0)
        require(self.threshold > 0, "threshold", "above 0", self.threshold)
        require(self.bandwidth > 0, "bandwidth", "above 0", self.bandwidth)

    def parameters(self, latents: int) -> dict[str, Tensor]:
        return {"log_threshold": torch.full((latents,), math.log(self.threshold))}

    def activate(
        self, u: Float[Tensor, "token latent"], parameters: Parameters = NONE, peers: Peers = HERE
    ) -> Float[Tensor, "token latent"]:
        return torch.where(u > parameters["log_threshold"].exp(), u, 0)

    def penalty(
        self, u: Float[Tensor, "token latent"], code: Float[Tensor, "token latent"], width: int
    ) -> Float[Tensor, ""]:
        return self.l0 * code.sign().sum() / width

    def backward(
        self,
        u: Float[Tensor, "token latent"],
        code: Float[Tensor, "token latent"],
        gradient: Float[Tensor, "token latent"],
        width: int,
        parameters: Parameters = NONE,
        proxy: Float[Tensor, "token latent"] | None = None,
    ) -> tuple[Float[Tensor, "token latent"], dict[str, Tensor]]:
        threshold = parameters["log_threshold"].exp()
        near = ((u - threshold).abs() < self.bandwidth / 2).to(u.dtype)
        of_threshold = -(threshold * (gradient * near).sum(0) + self.l0 / width * near.sum(0)) / self.bandwidth
        through = torch.ops.aten.threshold_backward(gradient, code, 0)
        return through, {"log_threshold": threshold * of_threshold}

    def weighted(self, factor: float) -> JumpReLU:
        return replace(self, l0=self.l0 * factor)

    def rescaled(self, parameters: Parameters, scale: float) -> dict[str, Tensor]:
        return {"log_threshold": parameters["log_threshold"] - math.log(scale)}
