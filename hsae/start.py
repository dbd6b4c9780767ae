"""Where a training begins: the weights, and what is taken from the activations."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from hsae.across import Peers
from hsae.ranks import ALONE, Ranks
from hsae.rules import Rule, Weights
from hsae.setup import Setup

# Rows that are drawn at a time where several ranks draw. PyTorch fills 16 numbers at once: so many rows of any width
# are a multiple, and pieces give the numbers of the whole.
PIECE = 4096


def initial_weights(setup: Setup, width: int, latents: int, seed: int, ranks: Ranks = ALONE) -> dict[str, Weights]:
    """Weights before the first step: `encoder`, and `decoder` unless tied.

    The encoder is drawn first, from the seed alone, so that setups under one seed start from the same encoder. Ranks
    that share out the dictionary all draw the whole of it, a piece at a time, and each keeps its rows.
    """
    here = ranks.share(latents)
    generator = torch.Generator().manual_seed(seed)
    bound = width**-0.5
    std = setup.init_std or ((2 / latents) ** 0.5 if setup.init == "tied-safe" else bound)

    def rows(count: int) -> Tensor:
        if setup.init == "kaiming":
            return torch.empty(count, width).uniform_(-bound, bound, generator=generator)
        return torch.randn(count, width, generator=generator) * std

    def matrix() -> Tensor:
        if ranks.size == 1:
            return rows(latents)
        kept, ends = [], [*range(PIECE, latents - PIECE + 1, PIECE), latents]
        for begin, end in zip([0, *ends], ends, strict=False):
            inside = slice(max(here.start - begin, 0), max(here.stop - begin, 0))
            kept.append(rows(end - begin)[inside].clone())
        return torch.cat(kept)

    W_enc = matrix()
    b_enc = torch.empty(latents).uniform_(-bound, bound, generator=generator)
    b_enc = b_enc if setup.init == "kaiming" else setup.encoder.bias(latents)
    extra = {key: value[here] if value.ndim else value for key, value in setup.variant.parameters(latents).items()}
    peers = Peers(ranks, latents)
    encoder = Weights(W_enc, b_enc[here], extra, peers)
    if setup.tied:
        return {"encoder": encoder}
    W_dec = W_enc.clone() if setup.decoder_init == "encoder" else matrix()
    b_dec = torch.zeros(width) if setup.decoder_bias else None
    return {"encoder": encoder, "decoder": Weights(W_dec, b_dec, peers=peers)}


def by_latent(weights: Mapping[str, Weights], rules: Mapping[str, Rule], setup: Setup) -> set[str]:
    """Which tensors of a learner have a row a latent, under a checkpoint's names: those that one latent more lengthens.

    Args:
        weights: the learner's, of each synapse.
        rules: of each synapse.
        setup: the learner's.
    """
    shapes: list[dict[str, torch.Size]] = []
    for latents in (1, 2):
        shapes.append({})
        for name, own in weights.items():
            like = {key: value.new_empty(value.shape, device="meta") for key, value in own.items().items()}
            like |= setup.variant.parameters(latents) if name == "encoder" else {}
            like["W"] = like["W"].new_empty(latents, like["W"].shape[1])
            if name == "encoder" and "b" in like:
                like["b"] = like["b"].new_empty(latents)
            state = rules[name].start(Weights.of(like))
            shapes[-1] |= {f"{name}.{key}": value.shape for key, value in like.items()}
            shapes[-1] |= {f"{name}.state.{key}": value.shape for key, value in state.items()}
    one, two = shapes
    return {key for key, shape in one.items() if shape != two[key]}


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
