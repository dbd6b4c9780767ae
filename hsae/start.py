"""Where a training begins: the weights, and what is taken from the activations."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from hsae.rules import Weights
from hsae.setup import Setup


def initial_weights(setup: Setup, width: int, latents: int, seed: int) -> dict[str, Weights]:
    """Weights before the first step: `encoder`, and `decoder` unless tied.

    The encoder is drawn first, from the seed alone, so that setups under one seed start from the same encoder.
    """
    generator = torch.Generator().manual_seed(seed)
    bound = width**-0.5
    std = setup.init_std or ((2 / latents) ** 0.5 if setup.init == "tied-safe" else bound)

    def matrix() -> Tensor:
        if setup.init == "kaiming":
            return torch.empty(latents, width).uniform_(-bound, bound, generator=generator)
        return torch.randn(latents, width, generator=generator) * std

    W_enc = matrix()
    b_enc = torch.empty(latents).uniform_(-bound, bound, generator=generator)
    b_enc = b_enc if setup.init == "kaiming" else setup.encoder.bias(latents)
    encoder = Weights(W_enc, b_enc, setup.variant.parameters(latents))
    if setup.tied:
        return {"encoder": encoder}
    W_dec = W_enc.clone() if setup.decoder_init == "encoder" else matrix()
    return {"encoder": encoder, "decoder": Weights(W_dec, torch.zeros(width) if setup.decoder_bias else None)}


def geometric_median(x: Float[Tensor, "token width"], iterations: int = 64) -> Float[Tensor, "width"]:
    """The point with the least sum of distances to the tokens, by Weiszfeld's algorithm in float64."""
    points = x.cpu().double()
    at = points.mean(0)
    for _ in range(iterations):
        weights = 1 / (points - at).norm(dim=1).clamp(min=1e-12)
        at, last = (weights[:, None] * points).sum(0) / weights.sum(), at
        if (at - last).norm() <= 1e-9 * last.norm():
            break
    return at.to(x)


def centre_of(
    setup: Setup, mean: Float[Tensor, "width"], sample: Float[Tensor, "token width"]
) -> Float[Tensor, "width"]:
    """What a setup takes from activations: nothing, their mean, or the geometric median of a sample of them."""
    if setup.centre == "median":
        return geometric_median(sample)
    return mean if setup.centre == "mean" else torch.zeros_like(mean)
