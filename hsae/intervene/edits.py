"""Changes of latents' activations, as changes of the model's: only the latents' parts move, the SAE's error stays.

x + Σᵢ (new codeᵢ - codeᵢ) · W_decᵢ / scale
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hsae.sae import SAE


def directions(sae: SAE, latents: Sequence[int]) -> Float[Tensor, "some width"]:
    """What an activation of 1 of each latent adds to the model's activation, at the store's scale."""
    return sae.W_dec[list(latents)] / sae.scale


def random_directions(like: Float[Tensor, "some width"], generator: torch.Generator) -> Float[Tensor, "some width"]:
    """For each direction a random one of the same length, evenly distributed over the sphere."""
    drawn = torch.randn(like.shape, generator=generator)
    drawn = drawn / drawn.norm(dim=1, keepdim=True)
    return drawn.to(like) * like.norm(dim=1, keepdim=True)


@dataclass(frozen=True)
class Edit:
    """Gives latents another activation wherever they fire.

    Attributes:
        latents: the latents.
        directions: what an activation of 1 of each of them adds; a control takes others than the decoder's.
        set_to: their new activation; 0 takes them out.
    """

    latents: tuple[int, ...]
    directions: Float[Tensor, "some width"]
    set_to: float = 0.0

    def change(self, code: Float[Tensor, "token some"]) -> Float[Tensor, "token width"]:
        """What is added to the activations whose code of these latents is `code`."""
        return torch.where(code > 0, self.set_to - code, 0) @ self.directions
