"""The sparse autoencoder and its variants, one per file.

code = act(W_enc x + b_enc), reconstruction = code W_dec + b_dec.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import ClassVar

import torch
from einops import pack, unpack
from jaxtyping import Float
from torch import Tensor

from hsae.across import HERE, Peers
from hsae.config import Registered
from hsae.dist import ONE, Grid

Parameters = Mapping[str, Float[Tensor, "..."]]
NONE: Parameters = MappingProxyType({})


@dataclass(frozen=True)
class Selection:
    """A code that is the drive where it is selected and 0 elsewhere, in a form that compiled code follows.

    Attributes:
        k: each token keeps so many of its highest drives above 0; 0: all of them.
        least: only drives of at least this much.
        l1: weight of an L1 penalty, on Σcode / width.
    """

    k: int = 0
    least: float = 0.0
    l1: float = 0.0


@dataclass(frozen=True)
class Variant(Registered, ABC):
    """How the drive becomes a code, what sparsity costs, and the gradient of both. Its fields are its settings.

    A variant may have parameters of its own (thresholds, gains): per latent, or single numbers.
    """

    package: ClassVar[str] = "hsae.sae"
    selector: ClassVar[str] = "kind"
    pointwise: ClassVar[bool] = False
    """in a trained SAE, a latent's code depends on no other latent's drive"""
    trained: ClassVar[bool] = False
    """its parameters learn by gradient, so only backpropagation can train its encoder"""
    penalised: ClassVar[bool] = False
    """sparsity is bought by a penalty (see `weighted`); otherwise it is set outright (see `aimed`)"""
    masks: ClassVar[bool] = True
    """a latent may stay silent though its drive is above 0"""
    whole_batch: ClassVar[bool] = False
    """the code depends on the whole batch, through what `settle` finds before training's pass over it"""
    proxied: ClassVar[bool] = False
    """a second code joins the loss (see `proxy`)"""

    def parameters(self, latents: int) -> dict[str, Tensor]:
        """The parameters that training starts from."""
        return {}

    def settle(
        self,
        above: Callable[[Float[Tensor, ""]], Float[Tensor, "drive"]],
        tokens: int,
        parameters: Parameters,
        grid: Grid = ONE,
    ) -> Parameters:
        """Parameters for this batch, from its drives.

        Args:
            above: gives all drives at this rank that are above a number.
            tokens: of the whole batch, at all ranks.
            parameters: the last batch's.
            grid: the ranks that have the batch's other tokens and the other latents.
        """
        return parameters

    def inference(self, parameters: Parameters) -> dict[str, Tensor]:
        """The parameters of the trained SAE, from training's."""
        return dict(parameters)

    @abstractmethod
    def activate(
        self, u: Float[Tensor, "token latent"], parameters: Parameters = NONE, peers: Peers = HERE
    ) -> Float[Tensor, "token latent"]:
        """The code of a drive. A variant in which latents compete asks `peers` for those that it does not see."""

    def selection(self, parameters: Parameters = NONE) -> Selection | None:
        """What `activate`, `penalty` and `backward` come to, where a selection says it all; None where it does not."""
        return None

    def penalty(
        self, u: Float[Tensor, "token latent"], code: Float[Tensor, "token latent"], width: int
    ) -> Float[Tensor, ""]:
        """The sparsity term of the loss, summed over tokens: none, unless the variant has one."""
        return code.new_zeros(())

    def backward(
        self,
        u: Float[Tensor, "token latent"],
        code: Float[Tensor, "token latent"],
        gradient: Float[Tensor, "token latent"],
        width: int,
        parameters: Parameters = NONE,
        proxy: Float[Tensor, "token latent"] | None = None,
    ) -> tuple[Float[Tensor, "token latent"], dict[str, Tensor]]:
        """Back through `activate`: the gradient for the drive, and those of the parameters summed over tokens.

        As it stands: for a code that is the drive where it is above 0, without a penalty or parameters.

        Args:
            u: the drive.
            code: what `activate` made of it.
            gradient: the reconstruction error's gradient for the code; its memory may be used.
            width: the width of the activations.
            parameters: the variant's.
            proxy: the gradient for `proxy`'s code, where there is one.
        """
        return torch.ops.aten.threshold_backward(gradient, code, 0), {}

    def proxy(self, u: Float[Tensor, "token latent"]) -> Float[Tensor, "token latent"]:
        """A second code whose reconstruction error, by the decoder held fixed, joins the loss, where `proxied`."""
        raise NotImplementedError

    def prefixes(self, latents: int) -> tuple[int, ...]:
        """The loss is the mean over these of the error when only so many first latents reconstruct. All, for most."""
        return (latents,)

    def weighted(self, factor: float) -> Variant:
        """The same with its sparsity penalty times `factor`."""
        return self

    def aimed(self, l0: float) -> Variant:
        """The same with its L0 set outright; the same, where a penalty decides."""
        return self

    def rescaled(self, parameters: Parameters, scale: float) -> dict[str, Tensor]:
        """Parameters under which drives divided by `scale` give codes divided by it."""
        return dict(parameters)


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
        parameters: the variant's own (thresholds, gains); none for most.
        peers: who holds the dictionary's other latents; a trained SAE has all.
    """

    W_enc: Float[Tensor, "latent width"]
    b_enc: Float[Tensor, "latent"]
    W_dec: Float[Tensor, "latent width"]
    b_dec: Float[Tensor, "width"]
    variant: Variant
    scale: float = 1.0
    parameters: Parameters = field(default_factory=dict)
    peers: Peers = HERE

    @property
    def latents(self) -> int:
        """The number of latents here, K."""
        return self.W_enc.shape[0]

    @property
    def width(self) -> int:
        """The width of the activations, d."""
        return self.W_enc.shape[1]

    def encode(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch latent"]:
        """The code of activations."""
        rows, batch = pack([x], "* width")
        u = torch.addmm(self.b_enc, rows * self.scale, self.W_enc.T)
        code = self.variant.activate(u, self.parameters, self.peers)
        return unpack(code, batch, "* latent")[0]

    def encode_latents(self, x: Float[Tensor, "token width"], latents: Sequence[int]) -> Float[Tensor, "token some"]:
        """The code of activations for some latents only; at their cost alone, where the variant is pointwise."""
        some = list(latents)
        if not self.variant.pointwise:
            return self.encode(x)[:, some]
        own = {name: value[some] if value.ndim else value for name, value in self.parameters.items()}
        return self.variant.activate(torch.addmm(self.b_enc[some], x * self.scale, self.W_enc[some].T), own)

    def decode(self, code: Float[Tensor, "*batch latent"]) -> Float[Tensor, "*batch width"]:
        """The reconstruction of a code, at the store's scale."""
        return (self.peers.sum(code @ self.W_dec) + self.b_dec) / self.scale

    def __call__(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """The reconstruction of activations."""
        return self.decode(self.encode(x))

    def to(self, device: str | torch.device) -> SAE:
        """The same SAE on another device; a tied one stays tied."""
        W_enc = self.W_enc.to(device)
        W_dec = W_enc if self.W_dec is self.W_enc else self.W_dec.to(device)
        parameters = {name: value.to(device) for name, value in self.parameters.items()}
        moved = replace(self, W_enc=W_enc, W_dec=W_dec, parameters=parameters)
        return replace(moved, b_enc=self.b_enc.to(device), b_dec=self.b_dec.to(device))

    def joined(self) -> SAE:
        """The SAE with the latents of all its ranks, at the first of them and on the processor; all must call."""
        W_enc = self.peers.collect(self.W_enc)
        W_dec = W_enc if self.W_dec is self.W_enc else self.peers.collect(self.W_dec)
        own = {key: self.peers.collect(value) if value.ndim else value for key, value in self.parameters.items()}
        b_enc = self.peers.collect(self.b_enc)
        return replace(self, W_enc=W_enc, b_enc=b_enc, W_dec=W_dec, parameters=own, peers=HERE)

    def folded(self) -> SAE:
        """The same function with a scale of 1: the scale goes into biases and thresholds, codes are in store units."""
        b_enc, b_dec = self.b_enc / self.scale, self.b_dec / self.scale
        parameters = self.variant.rescaled(self.parameters, self.scale)
        return replace(self, b_enc=b_enc, b_dec=b_dec, parameters=parameters, scale=1.0)
