"""How much a learning signal points along Hebb's: cosines and inner products of the two, by batch and by sample.

A linear layer h_b = W h_a (without its bias) has the Hebbian direction H_n = h_b,n h_a,nᵀ for sample n. Gradient
descent moves it by g_n = s_n h_a,nᵀ with s_n = -δ_n, less the loss's gradient at h_b. Three estimators compare them:

    A1, batch   cos(Σ g_n, Σ H_n)
    A2, sample  mean of cos(g_n, H_n) = cos(s_n, h_b,n), as the two outer products share h_a
    A3, inner   mean of ⟨g_n, H_n⟩ = (s_n · h_b,n) ‖h_a,n‖²

Where an update g - γW rests, E[g] = γW, so ⟨E[g], E[H]⟩ = γ ⟨W, E[h_b h_aᵀ]⟩ = γ E‖h_b‖² > 0, whatever g is: weight
decay makes every learning signal Hebbian on average.

Everything is computed from sums and outer products; no sample's matrix is ever made. A vector or matrix that is 0
points nowhere: its cosine with anything counts as 0, and its sample stays in the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hsae.across import HERE, Peers

Outer = tuple[Float[Tensor, "sample out"], Float[Tensor, "sample in"]]
"""l and r: each sample's matrix l_n r_nᵀ"""


@dataclass(frozen=True)
class Alignment:
    """A learning signal beside the Hebbian direction of its layer.

    Attributes:
        batch_cos: A1.
        sample_cos: A2; None where a rule has no signal of its own for each sample.
        inner: A3, in units of the signal times those of H; None where `sample_cos` is.
        step_cos: as `batch_cos`, but of the step that the weights really took; None where it is not known.
    """

    batch_cos: float
    sample_cos: float | None = None
    inner: float | None = None
    step_cos: float | None = None


def measured(
    signal: Float[Tensor, "sample out"], h_b: Float[Tensor, "sample out"], h_a: Float[Tensor, "sample in"]
) -> Alignment:
    """All three estimators of a linear layer over one batch.

    Args:
        signal: minus the loss's gradient at the layer's output.
        h_b: the output, less its bias.
        h_a: the input.
    """
    batch = batch_cosine(signal.T @ h_a, h_b.T @ h_a)
    return Alignment(batch, sample_cosine(signal, h_b), inner(signal, h_b, h_a))


def batch_cosine(
    signal_sum: Float[Tensor, "out in"], hebbian_sum: Float[Tensor, "out in"], peers: Peers = HERE
) -> float:
    """A1: cos(Σ g_n, Σ H_n), of sums or means over a batch."""
    return cosine(signal_sum, hebbian_sum, peers)


def sample_cosine(signal: Float[Tensor, "sample out"], h_b: Float[Tensor, "sample out"]) -> float:
    """A2: the mean over samples of cos(s_n, h_b,n), which is cos(g_n, H_n) wherever h_a,n is not 0."""
    one = signal.new_ones(len(signal), 1)
    return cosines([(signal, one)], [(h_b, one)]).mean().item()


def inner(
    signal: Float[Tensor, "sample out"], h_b: Float[Tensor, "sample out"], h_a: Float[Tensor, "sample in"]
) -> float:
    """A3: the mean over samples of ⟨g_n, H_n⟩ = (s_n · h_b,n) ‖h_a,n‖²."""
    return dots([(signal, h_a)], [(h_b, h_a)]).mean().item()


def dots(a: Sequence[Outer], b: Sequence[Outer], peers: Peers = HERE) -> Float[Tensor, "sample"]:
    """Each sample's ⟨Σ_i l_i r_iᵀ, Σ_j l_j r_jᵀ⟩ = Σ_ij (l_i · l_j)(r_i · r_j), in float64 on the host.

    Where latents are elsewhere too, l are this rank's and r all alike.
    """
    return peers.sum(torch.stack([_rows(p[0], q[0]) * _rows(p[1], q[1]) for p in a for q in b]).sum(0))


def cosines(a: Sequence[Outer], b: Sequence[Outer], peers: Peers = HERE) -> Float[Tensor, "sample"]:
    """Each sample's cosine between two sums of outer products, in float64 on the host."""
    lengths = (dots(a, a, peers).clamp(min=0) * dots(b, b, peers).clamp(min=0)).sqrt()
    return torch.where(lengths > 0, dots(a, b, peers) / lengths, 0.0)


def cosine(a: Float[Tensor, "..."], b: Float[Tensor, "..."], peers: Peers = HERE) -> float:
    """The cosine between two tensors as vectors, in float64; 0 where one of them is 0."""
    a, b = a.cpu().double().flatten(), b.cpu().double().flatten()
    lengths = (peers.length(a.norm()) * peers.length(b.norm())).item()
    return peers.sum(a @ b).item() / lengths if lengths else 0.0


def _rows(a: Float[Tensor, "sample n"], b: Float[Tensor, "sample n"]) -> Float[Tensor, "sample"]:
    return (a * b).sum(1).cpu().double()
