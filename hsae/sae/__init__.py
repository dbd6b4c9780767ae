"""The sparse autoencoder and its variants, one per file.

code = act(W_enc x + b_enc), reconstruction = code W_dec + b_dec.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from einops import pack, unpack
from jaxtyping import Float
from torch import Tensor

from hsae.config import Registered


@dataclass(frozen=True)
class Variant(Registered, ABC):
    """How the drive becomes a code, what sparsity costs, and the gradient of both. Its fields are its settings."""

    package: ClassVar[str] = "hsae.sae"
    selector: ClassVar[str] = "kind"
    pointwise: ClassVar[bool] = False
    """a latent's code depends on no other latent's drive"""

    @abstractmethod
    def activate(self, u: Float[Tensor, "token latent"]) -> Float[Tensor, "token latent"]:
        """The code of a drive."""

    @abstractmethod
    def penalty(self, code: Float[Tensor, "token latent"], width: int) -> Float[Tensor, ""]:
        """The sparsity term of the loss, summed over tokens."""

    @abstractmethod
    def backward(
        self, code: Float[Tensor, "token latent"], gradient: Float[Tensor, "token latent"], width: int
    ) -> Float[Tensor, "token latent"]:
        """The gradient for the drive: the penalty's, plus the given one for the code, back through `activate`.

        May use `gradient`'s memory.
        """


@dataclass(frozen=True)
class SAE:
    """A trained sparse autoencoder. Takes activations at the scale at which the store has them.

    Attributes:
        W_enc: [latent, width]. One latent per row.
        b_enc: [latent].
        W_dec: [latent, width]. The same tensor as `W_enc` when tied.
        b_dec: [width].
        variant: the activation function and its settings.
        scale: activations are multiplied by it before encoding, and reconstructions divided by it.
    """

    W_enc: Float[Tensor, "latent width"]
    b_enc: Float[Tensor, "latent"]
    W_dec: Float[Tensor, "latent width"]
    b_dec: Float[Tensor, "width"]
    variant: Variant
    scale: float = 1.0

    @property
    def latents(self) -> int:
        """The number of latents, K."""
        return self.W_enc.shape[0]

    @property
    def width(self) -> int:
        """The width of the activations, d."""
        return self.W_enc.shape[1]

    def encode(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch latent"]:
        """The code of activations."""
        rows, batch = pack([x], "* width")
        code = self.variant.activate(torch.addmm(self.b_enc, rows * self.scale, self.W_enc.T))
        return unpack(code, batch, "* latent")[0]

    def encode_latents(self, x: Float[Tensor, "token width"], latents: Sequence[int]) -> Float[Tensor, "token some"]:
        """The code of activations for some latents only; at their cost alone, where the variant is pointwise."""
        some = list(latents)
        if not self.variant.pointwise:
            return self.encode(x)[:, some]
        return self.variant.activate(torch.addmm(self.b_enc[some], x * self.scale, self.W_enc[some].T))

    def decode(self, code: Float[Tensor, "*batch latent"]) -> Float[Tensor, "*batch width"]:
        """The reconstruction of a code, at the store's scale."""
        return (code @ self.W_dec + self.b_dec) / self.scale

    def __call__(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """The reconstruction of activations."""
        return self.decode(self.encode(x))

    def to(self, device: str | torch.device) -> SAE:
        """The same SAE on another device; a tied one stays tied."""
        W_enc = self.W_enc.to(device)
        W_dec = W_enc if self.W_dec is self.W_enc else self.W_dec.to(device)
        return replace(self, W_enc=W_enc, b_enc=self.b_enc.to(device), W_dec=W_dec, b_dec=self.b_dec.to(device))

    def folded(self) -> SAE:
        """The same function with a scale of 1: the scale goes into the biases, and codes come out in the store's units.

        Exact for activation functions with act(s·u) = s·act(u), such as ReLU and TopK.
        """
        return replace(self, b_enc=self.b_enc / self.scale, b_dec=self.b_dec / self.scale, scale=1.0)
