"""The same forward pass by Triton kernels, on a GPU: no [token, latent] matrix, but for what a rule asks for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hsae.forward import Auxiliary, Forward
from hsae.kernels.softhebb import Competition
from hsae.rules import Usage, Weights
from hsae.sae import Selection, Variant

if TYPE_CHECKING:
    from hsae.kernels.triton_relu import Forwarded
    from hsae.kernels.triton_sparse import Decoded
    from hsae.kernels.triton_tiles import Gradients
    from hsae.kernels.triton_topk import Chosen

Products = Literal["ieee", "tf32", "tf32x3", "bf16"]
"""how numbers are multiplied: float32, on tensor cores with 10 bits of mantissa or in three such products, bfloat16"""


def fused_forward(
    x: Float[Tensor, "token width"],
    weights: Mapping[str, Weights],
    variant: Variant,
    learned: Collection[str],
    products: Products = "ieee",
    auxiliary: Auxiliary | None = None,
    l1: Float[Tensor, "1"] | None = None,
) -> FusedForward | None:
    """The forward pass by Triton; None where it cannot be: no Triton, no GPU, or a variant that has no kernel.

    Args:
        x: activations, centred.
        weights: `encoder` and, unless tied, `decoder`.
        variant: the SAE's variant.
        learned: which of those backpropagation serves, so that no gradient is computed in vain.
        products: how numbers are multiplied. Temperatures of tens want float32, or three times TF32, in SoftHebb.
        auxiliary: the dead latents' loss, if they have one.
        l1: the penalty's weight on x's device, which a captured graph can be given anew; the variant's by default.
    """
    selection = variant.selection(weights["encoder"].extra)
    if selection is None or selection.least or weights["encoder"].b is None or weights["encoder"].peers.several:
        return None
    from hsae.kernels import triton_relu, triton_topk

    takes = triton_topk.fused(x, selection.k) if selection.k else triton_relu.fused(x)
    return FusedForward(x, weights, variant, selection, learned, products, auxiliary, l1) if takes else None


class FusedForward(Forward):
    """One micro-batch through an SAE whose code is its drives above 0, or the k highest: see `fused_forward`."""

    def __init__(
        self,
        x: Float[Tensor, "token width"],
        weights: Mapping[str, Weights],
        variant: Variant,
        selection: Selection,
        learned: Collection[str],
        products: Products,
        auxiliary: Auxiliary | None = None,
        l1: Float[Tensor, "1"] | None = None,
    ) -> None:
        super().__init__(x, weights, variant, auxiliary)
        self.selection, self.learned = selection, learned
        self._short = torch.bfloat16 if products == "bf16" else x.dtype
        self._precision: Literal["ieee", "tf32", "tf32x3"] = "ieee" if products == "bf16" else products
        self._l1 = torch.full((1,), selection.l1, device=x.device) if l1 is None else l1

    @cached_property
    def _x(self) -> Float[Tensor, "token width"]:
        return self.x.to(self._short)

    @cached_property
    def _W(self) -> tuple[Float[Tensor, "1 latent width"], Float[Tensor, "1 latent width"]]:
        """The encoder's rows and the decoder's, as the kernels take them."""
        encoder = self.encoder.W.to(self._short)[None]
        return encoder, encoder if self.tied else self.decoder.W.to(self._short)[None]

    @property
    def _b(self) -> Float[Tensor, "1 latent"]:
        assert self.encoder.b is not None
        return self.encoder.b[None]

    @cached_property
    def _chosen(self) -> Chosen:
        from hsae.kernels import triton_topk

        k = min(self.selection.k, len(self.encoder.W))
        return triton_topk.choose(self._x, self._W[0], self._b, k, precision=self._precision)

    @cached_property
    def _made(self) -> Forwarded | Decoded:
        from hsae.kernels import triton_relu, triton_sparse

        b_dec = None if self.b_dec is None else self.b_dec[None]
        if self.selection.k:
            return triton_sparse.decode(self._x, self._chosen, self._W[1], b_dec)
        return triton_relu.forward(self._x, self._W[0], self._b, self._W[1], b_dec, precision=self._precision)

    @cached_property
    def _sums(self) -> Gradients:
        from hsae.kernels import triton_relu, triton_sparse

        wrong = self._made.error
        if self.selection.k:
            return triton_sparse.gradients(self._x, wrong, self._chosen, self._W[1], self.tied)
        encoder, decoder = ("encoder" in self.learned), ("decoder" in self.learned)
        return triton_relu.gradients(
            self._x,
            wrong,
            self._W[0],
            self._b,
            self._W[1],
            self._l1,
            encoder=encoder,
            decoder=decoder,
            tied=self.tied and encoder,
            precision=self._precision,
        )

    @cached_property
    def _errors(self) -> list[Float[Tensor, "token width"]]:
        return [self._made.error[0].to(self.x.dtype)]

    @cached_property
    def usage(self) -> Usage:
        """How often and how strongly the latents fired: from whatever kernel counted it on the way."""
        squares = lambda: Usage.of(self.code).squares()  # noqa: E731
        if self.learned:
            return Usage(self._sums.fired[0], self._total, squares)
        if self.selection.k:
            used, fired = self._chosen.code.flatten() != 0, torch.zeros_like(self._b[0])
            return Usage(fired.index_add_(0, self._chosen.latent.flatten(), used.to(fired.dtype)), self._total, squares)
        if self._competitions:
            won = next(iter(self._competitions.values()))
            return Usage(won.fired, won.total, squares)
        return super().usage

    @property
    def _total(self) -> Float[Tensor, ""]:
        """The sum of all activations."""
        if self.selection.k:
            return self._chosen.code.sum()
        return self._made.l1.sum()  # pyright: ignore[reportAttributeAccessIssue]

    def competition(self, temperature: float, signed: bool) -> Competition:
        from hsae.kernels import triton_softhebb

        done = self._competitions.get((temperature, signed))
        if done is None:
            given = (self._x, self._W[0], self._b, temperature)
            first = triton_softhebb.compete(*given, precision=self._precision)
            sums = triton_softhebb.statistics(*given, signed, first, precision=self._precision)
            done = Competition(sums.sx[0], sums.s[0], sums.y[0], sums.fired[0], first.total.sum())
            self._competitions[temperature, signed] = done
        return done

    def _penalty(self) -> Float[Tensor, ""]:
        return self.usage.total * (self._l1[0] / self.width)

    def _drive_of(self, latents: Int[Tensor, "some"]) -> Float[Tensor, "token some"]:
        assert self.encoder.b is not None
        return torch.addmm(self.encoder.b[latents], self.x, self.encoder.W[latents].T)

    def _encoder_sums(self) -> Weights:
        sums = self._sums
        assert sums.W_enc is not None
        assert sums.b_enc is not None
        return Weights(sums.W_enc[0], sums.b_enc[0])

    def _decoder_sums(self) -> Float[Tensor, "latent width"]:
        # Tied, both sides' are in the encoder's already.
        sums = self._sums.W_dec
        return torch.zeros_like(self.decoder.W) if sums is None else sums[0]
