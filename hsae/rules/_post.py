"""What rules take from a synapse: the latents' side of Hebb's product, the drive that latents compete by, and sums."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hsae.rules import Synapse

Post = Literal["drive", "code"]


def post(synapse: Synapse, which: Post) -> Float[Tensor, "token latent"]:
    """The latents' side: W x with the synapse's own weights and no bias (`drive`), or the latents' code (`code`).

    `Synapse.u` is the encoder's drive on both sides, so a decoder computes its own.
    """
    if which == "code":
        return synapse.y
    if synapse.weights.b is None:
        return synapse.x @ synapse.weights.W.T
    return synapse.u - synapse.weights.b


def lebesgue(W: Float[Tensor, "latent width"], p: float) -> Float[Tensor, "latent width"]:
    """sign(W) |W|^(p-1): the weights that the drive sees where a row's length is its Lebesgue p-norm."""
    return W if p == 2 else W.sign() * W.abs() ** (p - 1)


def competing(synapse: Synapse, p: float = 2.0) -> Float[Tensor, "token latent"]:
    """The drive that latents compete by: the forward's, and for p ≠ 2 the encoder's own by `lebesgue` weights.

    A decoder's latents compete by the encoder's drive as it is, so that both sides mostly agree on who wins.
    """
    if p == 2 or synapse.weights.b is None:
        return synapse.u
    return torch.addmm(synapse.weights.b, synapse.x, lebesgue(synapse.weights.W, p).T)


def count(synapse: Synapse) -> Float[Tensor, ""]:
    """The number of tokens, as a statistic."""
    # Filled on the device: a number copied to a GPU would make the host wait, and cannot be captured in a graph.
    return torch.full((), float(len(synapse.x)), device=synapse.x.device)


def over_tokens(values: Float[Tensor, "token latent"]) -> Float[Tensor, "latent"]:
    """The sum over tokens. A product with a row of ones is many times faster than PyTorch's own on a CPU."""
    return (values.new_ones(1, len(values)) @ values).squeeze(0)


def by_latent(
    x: Float[Tensor, "token width"], latent: Int[Tensor, "token"], latents: int
) -> Float[Tensor, "latent width"]:
    """Each latent's sum of the x that name it: one-hot(latent)ᵀ x, without the one-hot matrix.

    Each branch adds in a fixed order on its device, so that a run can be repeated.
    """
    total = x.new_zeros(latents, x.shape[1])
    if x.is_cuda:
        return total.index_put_((latent,), x, accumulate=True)
    return total.index_add_(0, latent, x)
