"""The same forward pass from the active latents alone: no [token, latent] matrix, but for what a rule asks for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hsae.across import Peers
from hsae.forward import Auxiliary, Forward
from hsae.kernels.sparse import Code
from hsae.rules import Usage, Weights
from hsae.sae import Selection, Variant


class SparseForward(Forward):
    """One micro-batch through one SAE whose code is a selection of the drives.

    Args:
        x: activations, centred.
        weights: `encoder` and, unless tied, `decoder`.
        variant: the SAE's variant.
        selection: what the variant comes to.
        code: of these activations.
        auxiliary: the dead latents' loss, if they have one.
    """

    sparse: Code

    def __init__(
        self,
        x: Float[Tensor, "token width"],
        weights: Mapping[str, Weights],
        variant: Variant,
        selection: Selection,
        code: Code,
        auxiliary: Auxiliary | None = None,
    ) -> None:
        super().__init__(x, weights, variant, auxiliary)
        self.selection, self.sparse = selection, code

    @cached_property
    def code(self) -> Float[Tensor, "token latent"]:
        return self.sparse.dense()

    @cached_property
    def usage(self) -> Usage:
        return Usage(self.sparse.fired(), self.sparse.total(), self.sparse.squares)

    @cached_property
    def _errors(self) -> list[Float[Tensor, "token width"]]:
        wanted = self.peers.once(self.x if self.b_dec is None else self.x - self.b_dec)
        return [self.peers.sum(self.sparse.decode(self.decoder.W, wanted))]

    def _penalty(self) -> Float[Tensor, ""]:
        return self.usage.total * (self.selection.l1 / self.width)

    @cached_property
    def _proxy(self) -> None:
        return None

    def _drive_of(self, latents: Int[Tensor, "some"]) -> Float[Tensor, "token some"]:
        assert self.encoder.b is not None
        return torch.addmm(self.encoder.b[latents], self.x, self.encoder.W[latents].T)

    def _decoder_sums(self) -> Float[Tensor, "latent width"]:
        return self._outer(self.error, 2 / self.width)

    def _encoder_sums(self) -> Weights:
        W, b = torch.zeros_like(self.encoder.W), torch.zeros_like(self.encoder.W[:, 0])
        back = self.sparse.back(self.error, self.decoder.W, 2 / self.width, self.selection.l1 / self.width)
        self.sparse.add(W, self.x, back, sums=b)
        return Weights(W, b)

    @cached_property
    def _explained(self) -> Float[Tensor, "latent width"]:
        return self._outer(self.error, -1.0)

    def _outer(self, signal: Float[Tensor, "token width"], scale: float) -> Float[Tensor, "latent width"]:
        """scale · codeᵀ signal."""
        out = torch.zeros_like(self.decoder.W)
        self.sparse.add(out, signal, scale=scale)
        return out


def highest(code: Code, k: int, peers: Peers) -> Code:
    """The entries of a code of k a token that are among the k highest over all ranks, of equal ones the first."""
    if not peers.several:
        return code
    place = torch.arange(k)
    entry = (code.start[:, None] + place).clamp_(max=max(code.entries - 1, 0))
    values = code.value[entry] if code.entries else code.value.new_zeros(entry.shape)
    values = values.masked_fill(place >= code.count[:, None], -torch.inf)
    values, order = values.sort(dim=1, descending=True, stable=True)
    stays = torch.zeros_like(order, dtype=torch.bool).scatter_(1, order, peers.among(values, k) > -torch.inf)
    kept, count = entry[stays], stays.sum(1)
    return Code(code.latents, count.cumsum(0) - count, count.to(code.count.dtype), code.index[kept], code.value[kept])
