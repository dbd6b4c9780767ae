"""An SAE in the form that formats outside speak: raw activations in, one of four activation functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import singledispatch
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hsae import registry
from hsae.errors import UserError
from hsae.sae import SAE, Variant
from hsae.sae.batchtopk import BatchTopK
from hsae.sae.gated import Gated
from hsae.sae.jumprelu import JumpReLU
from hsae.sae.relu import ReLU
from hsae.sae.topk import TopK

Activation = Literal["relu", "topk", "jumprelu", "gated"]


@dataclass(frozen=True)
class Plain:
    """u = W_enc x + b_enc for raw activations x, code = act(u), reconstruction = code W_dec + b_dec. All in float32.

    Attributes:
        activation: relu: ReLU(u). topk: of ReLU(u) each token keeps the `k` highest. jumprelu: ReLU(u) where
            u > `threshold`, else 0. gated: ReLU(e^`log_gain` · u + `magnitude_bias`) where u > 0, else 0.
        notes: what was folded on the way, a line each.
    """

    activation: Activation
    W_enc: Float[Tensor, "latent width"]
    b_enc: Float[Tensor, "latent"]
    W_dec: Float[Tensor, "latent width"]
    b_dec: Float[Tensor, "width"]
    k: int | None = None
    threshold: Float[Tensor, "latent"] | None = None
    log_gain: Float[Tensor, "latent"] | None = None
    magnitude_bias: Float[Tensor, "latent"] | None = None
    notes: tuple[str, ...] = ()

    @property
    def latents(self) -> int:
        """The number of latents, K."""
        return self.W_enc.shape[0]

    @property
    def width(self) -> int:
        """The width of the activations, d."""
        return self.W_enc.shape[1]

    @property
    def centred_bias(self) -> Float[Tensor, "latent"]:
        """The encoder's bias where a format takes `b_dec` from the activations first; summed in float64."""
        return (self.b_enc.double() + self.W_enc.double() @ self.b_dec.double()).float()

    @property
    def unit_rows(self) -> bool:
        """Whether every row of the decoder is of unit norm, as nearly as float32 has it."""
        norms = self.W_dec.norm(dim=1)
        return torch.allclose(norms, torch.ones_like(norms))

    def tensors(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Tensors under their names, those that the activation function does not have left out."""
        found = {name: getattr(self, name) for name in names}
        return {name: tensor for name, tensor in found.items() if tensor is not None}


def plain(sae: SAE) -> Plain:
    """The same function in a form that other tools speak; codes are in the units of the activations.

    Raises:
        UserError: the SAE's variant has no such form.
    """
    notes = []
    if sae.scale != 1:
        notes.append(f"the scale {sae.scale:.6g} is folded into biases and thresholds: codes are hsae's divided by it")
    sae = sae.folded().to("cpu")
    form = _form(sae.variant, sae)
    form = replace(form, **{name: tensor.float().contiguous() for name, tensor in form.tensors(_TENSORS).items()})
    return replace(form, notes=(*notes, *form.notes))


_TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "log_gain", "magnitude_bias")


@singledispatch
def _form(variant: Variant, sae: SAE) -> Plain:
    raise UserError(f"an SAE of kind {registry.name_of(variant)} has no form that another tool reads")


@_form.register(ReLU)
def _relu(variant: ReLU, sae: SAE) -> Plain:
    return Plain("relu", sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)


@_form.register(TopK)
def _topk(variant: TopK, sae: SAE) -> Plain:
    return Plain("topk", sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, k=min(variant.k, sae.latents))


@_form.register(JumpReLU)
def _jumprelu(variant: JumpReLU, sae: SAE) -> Plain:
    threshold = sae.parameters["log_threshold"].exp()
    return Plain("jumprelu", sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, threshold=threshold)


@_form.register(BatchTopK)
def _batchtopk(variant: BatchTopK, sae: SAE) -> Plain:
    cut = sae.parameters["threshold"]
    # Active from the cut on, where a threshold must be exceeded: the number just below it.
    below = torch.nextafter(cut, torch.full_like(cut, -torch.inf)).clamp(min=0)
    note = f"{registry.name_of(variant)}'s cut is every latent's threshold"
    threshold = below.expand(sae.latents)
    return Plain("jumprelu", sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, threshold=threshold, notes=(note,))


@_form.register(Gated)
def _gated(variant: Gated, sae: SAE) -> Plain:
    gain, bias = sae.parameters["log_gain"], sae.parameters["magnitude_bias"]
    return Plain("gated", sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, log_gain=gain, magnitude_bias=bias)
