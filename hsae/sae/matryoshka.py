"""Matryoshka (Bussmann et al., arXiv 2503.17547): first latents alone must reconstruct too. The code is BatchTopK's.

For backpropagation, that is: other rules learn from the whole reconstruction, and for them this is BatchTopK.

The loss is the mean, over nested prefixes of the dictionary, of the reconstruction error of that prefix. General
features gather in the first latents, special ones in the last.
"""

from __future__ import annotations

from dataclasses import dataclass

from hsae.config import require
from hsae.sae import NONE, Parameters
from hsae.sae.batchtopk import BatchTopK


@dataclass(frozen=True)
class Matryoshka(BatchTopK):
    """BatchTopK whose nested prefixes of latents each reconstruct."""

    shares: tuple[float, ...] = (0.0625, 0.125, 0.25, 0.5, 1.0)
    """the prefixes, as shares of the dictionary"""

    def __post_init__(self) -> None:
        super().__post_init__()
        rising = all(a < b for a, b in zip(self.shares, self.shares[1:], strict=False))
        ok = len(self.shares) > 0 and rising and self.shares[0] > 0 and self.shares[-1] == 1
        require(ok, "shares", "rising, above 0, the last 1", self.shares)

    def selection(self, parameters: Parameters = NONE) -> None:
        return None

    def prefixes(self, latents: int) -> tuple[int, ...]:
        return tuple(sorted({max(1, round(share * latents)) for share in self.shares}))
