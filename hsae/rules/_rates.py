"""What the rules that let latents compete share: Oja's decay, the scale of a batch's sum, the adaptive rate."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hsae.across import Peers
from hsae.rules import Weights
from hsae.rules._post import lebesgue

Normalise = Literal["global", "row", "mean"]


def decayed(
    sx: Float[Tensor, "latent width"], s: Float[Tensor, "latent"], weights: Weights, p: float = 2.0
) -> Float[Tensor, "latent width"]:
    """Σ s_k (x - u_k w_k) with u = lebesgue(W) x + b, from Σ s x and Σ s.

    Σ s_k u_k needs no pass over [token, latent] of its own: it is w_k · (Σ s_k x) + b_k Σ s_k.
    """
    W, b = weights.W, weights.b if weights.b is not None else torch.zeros_like(s)
    su = (lebesgue(W, p) * sx).sum(1) + b * s
    return sx - su[:, None] * W


def scaled(
    direction: Float[Tensor, "latent width"], tokens: Float[Tensor, ""], normalise: Normalise, peers: Peers
) -> Float[Tensor, "latent width"]:
    """A batch's sum over its largest entry, each latent's over its own largest, or over the number of tokens."""
    if normalise == "mean":
        return direction / tokens
    if normalise == "row":
        return direction / (direction.abs().amax(1, keepdim=True) + 1e-30)
    return direction / (peers.largest(direction.abs().max()) + 1e-30)


def rates(
    W: Float[Tensor, "latent width"], lr: float, adaptive: bool, power: float, p: float = 2.0
) -> Float[Tensor, "latent"]:
    """Each latent's rate: lr, times (| ‖w‖_p - 1 | + 1e-10)^power if adaptive."""
    rate = torch.full_like(W[:, 0], lr)
    return rate * ((W.norm(p=p, dim=1) - 1).abs() + 1e-10) ** power if adaptive else rate
