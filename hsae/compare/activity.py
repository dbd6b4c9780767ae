"""How latents fire on some tokens, and how those of two SAEs fire together; sums in float64, over blocks of codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hsae.sae import SAE

if TYPE_CHECKING:
    from scipy.sparse import csr_array

BLOCK = 1 << 24
"""entries of a block's code: 64 MiB"""
CONSTANT = 1e-10
"""share of a latent's mean square below which its variance is rounding error"""
DENSE = 64
"""how many multiplications of dense matrices cost as much as one of sparse matrices"""


@dataclass(frozen=True)
class Activity:
    """Sums over the tokens: how often each latent fires, its codes, and their squares."""

    tokens: int
    firings: Int[Tensor, "latent"]
    total: Float[Tensor, "latent"]
    square: Float[Tensor, "latent"]

    def some(self, latents: Int[Tensor, "some"]) -> Activity:
        """Of some latents only."""
        return Activity(self.tokens, self.firings[latents], self.total[latents], self.square[latents])

    @property
    def rate(self) -> Float[Tensor, "latent"]:
        """The share of tokens at which each latent fires."""
        return self.firings / max(self.tokens, 1)

    @property
    def spread(self) -> Float[Tensor, "latent"]:
        """The sum of squares of each code's distance from its mean; 0 for a latent that is constant."""
        spread = self.square - self.total.square() / max(self.tokens, 1)
        return torch.where(spread > CONSTANT * self.square, spread, 0)


@torch.inference_mode()
def activity(sae: SAE, rows: Float[Tensor, "token width"]) -> Activity:
    """How an SAE's latents fire on tokens, at the store's scale."""
    firings = torch.zeros(sae.latents, dtype=torch.int64)
    total, square = torch.zeros(2, sae.latents, dtype=torch.float64)
    for x in rows.split(_block(sae.latents)):
        code = sae.encode(x)
        firings += (code > 0).sum(0)
        total += code.sum(0, dtype=torch.float64)
        square += torch.linalg.vector_norm(code, dim=0, dtype=torch.float64).square()
    return Activity(len(rows), firings, total, square)


@torch.inference_mode()
def codes(sae: SAE, latents: Int[Tensor, "some"], rows: Float[Tensor, "token width"]) -> csr_array:
    """The codes of some latents, [token, some], sparse: 8 bytes for each that is active on a token."""
    from scipy.sparse import csr_array, vstack

    blocks = rows.split(_block(sae.latents))
    parts = [csr_array(sae.encode_latents(x, latents.tolist()).numpy()) for x in blocks]
    return csr_array(vstack(parts))


def correlation(a: csr_array, b: csr_array, of_a: Activity, of_b: Activity) -> Float[Tensor, "one other"]:
    """Pearson correlations between codes of two SAEs, each latent with each.

    Args:
        a: codes of one, [token, one].
        b: codes of the other on the same tokens; in another order of them, to see what is left by chance.
        of_a: the activity of those latents of one; none of them is constant.
        of_b: those of the other.
    """
    product = _product(a, b, len(of_a.total), len(of_b.total))
    product -= of_a.total[:, None] * (of_b.total / max(of_a.tokens, 1))
    product /= of_a.spread[:, None].sqrt()
    product /= of_b.spread.sqrt()
    return product.clamp_(-1, 1).float()


def _block(latents: int) -> int:
    return max(256, BLOCK // max(latents, 1))


def _product(a: csr_array, b: csr_array, one: int, other: int) -> Float[Tensor, "one other"]:
    """aᵀb in float64, by the active latents where that is quicker."""
    tokens = len(a.indptr) - 1
    multiplications = int((np.diff(a.indptr).astype(np.int64) * np.diff(b.indptr)).sum())
    if DENSE * multiplications <= tokens * one * other:
        return torch.from_numpy((a.T.astype(np.float64) @ b.astype(np.float64)).toarray())
    total = torch.zeros(one, other, dtype=torch.float64)
    step = _block(max(one, other))
    for first in range(0, tokens, step):
        left, right = (torch.from_numpy(side[first : first + step].toarray()).double() for side in (a, b))
        total.addmm_(left.T, right)
    return total
