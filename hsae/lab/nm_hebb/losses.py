"""NM-Hebb's losses: the Hebbian term and its gate, pairs with a margin, consolidation.

Phase 1: CE + λ_h ν R, with R the mean over filters f of (ā_f - w̄_f)²: mean activation and mean weight.
Phase 2: s d² + (1 - s) max(0, m - d)² + μ CE + λ_c ν ½ Σ (θ - θ⁻)².
ν = σ(MLP_φ(CE)), where no gradient flows into the CE. R and Σ (θ - θ⁻)² are never below 0, so ∂L/∂ν is not either: a
φ that learns from L itself can only close the gate. All kinds but `learned` are there to prevent that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

Reading = Literal["none", "source", "centred", "local"]
Kind = Literal["monotone", "prior", "meta", "constant", "learned"]


def hebbian_term(
    activation: Float[Tensor, "image filter height width"],
    weight: Float[Tensor, "filter channel h w"],
    reading: Reading = "source",
) -> Float[Tensor, ""]:
    """R, the mean over filters of (ā_f - w̄_f)².

    Args:
        activation: of the hooked layer, after batch norm and ReLU.
        weight: its kernels.
        reading: `source`; `centred`: ā less its mean over filters, since ā ≥ 0 gives every filter an offset; `local`:
            ā is held fixed, so that weights follow activations, and activations cannot follow weights.
    """
    a, w = activation.mean((0, 2, 3)), weight.mean((1, 2, 3))
    a = a - a.mean() if reading == "centred" else a.detach() if reading == "local" else a
    return (a - w).square().mean()


class Gate(nn.Module):
    """ν = σ(MLP_φ(CE)) with 8 hidden units, and how φ learns.

    Args:
        kind: `monotone`: not at all; ν rises with the CE, and is ½ at half the CE of guessing. `prior`: from L plus
            `strength` times the cross-entropy of ν with `prior`. `meta`: from what ν does to the loss on images that
            are set aside. `constant`: ν is `prior`. `learned`: from L, as the source has it.
        classes: of the data set.
        prior: the ν of `prior` and `constant`.
        strength: of that cross-entropy.
    """

    def __init__(self, kind: Kind, classes: int, prior: float = 0.5, strength: float = 0.1) -> None:
        super().__init__()
        self.kind, self.prior, self.strength = kind, prior, strength
        self.mlp = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
        if kind == "monotone":
            slopes = torch.linspace(0.5, 2.0, 8)
            fixed = (slopes[:, None], -slopes * math.log(classes) / 2, torch.full((1, 8), 0.5), torch.zeros(1))
            for parameter, value in zip(self.mlp.parameters(), fixed, strict=True):
                parameter.data = value
        self.mlp.requires_grad_(kind in ("prior", "meta", "learned"))

    def forward(self, ce: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """ν at a cross-entropy."""
        if self.kind == "constant":
            return torch.full_like(ce, self.prior)
        return self.mlp(ce.detach().reshape(1, 1)).sigmoid().reshape(())

    def gated(self, nu: Float[Tensor, ""], penalty: Float[Tensor, ""], effect: float = 0.0) -> Float[Tensor, ""]:
        """What the loss gets: ν times the penalty, and what φ learns from.

        Args:
            nu: of this step.
            penalty: λ R or λ L_cons.
            effect: of `meta`: the derivative by ν of the loss on images set aside.
        """
        if self.kind == "prior":
            return nu * penalty + self.strength * functional.binary_cross_entropy(nu, torch.full_like(nu, self.prior))
        if self.kind == "meta":
            # The second term is 0; its gradient is `effect`, and goes to φ alone.
            return nu.detach() * penalty + effect * (nu - nu.detach())
        return nu * penalty


def effect(penalty: Float[Tensor, ""], held: Float[Tensor, ""], parameters: list[nn.Parameter]) -> float:
    """-⟨∇ penalty, ∇ held⟩: above 0 where a step down the penalty does harm to the loss on images set aside.

    To first order, the derivative by ν of that loss after a step of gradient descent of rate 1 on ν times the penalty.
    """
    ours = torch.autograd.grad(penalty, parameters, retain_graph=True, allow_unused=True)
    theirs = torch.autograd.grad(held, parameters, allow_unused=True)
    both = [(a * b).sum() for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    return -float(torch.stack(both).sum())


def pair_loss(
    z: Float[Tensor, "pair feature"], other: Float[Tensor, "pair feature"], same: Bool[Tensor, "pair"], margin: float
) -> Float[Tensor, ""]:
    """The mean over pairs of d² where the classes are the same, and of max(0, margin - d)² where they are not."""
    d = torch.linalg.vector_norm(z - other, dim=1)
    return torch.where(same, d.square(), (margin - d).relu().square()).mean()


def consolidation(now: Sequence[Tensor], then: Sequence[Tensor]) -> Float[Tensor, ""]:
    """½ Σ (θ - θ⁻)² over all parameters: elastic weight consolidation with every weight as important as any other."""
    return 0.5 * torch.stack([(a - b).square().sum() for a, b in zip(now, then, strict=True)]).sum()


def partners(
    anchors: Int[Tensor, "pair"], labels: Int[Tensor, "image"], generator: torch.Generator
) -> tuple[Int[Tensor, "pair"], Bool[Tensor, "pair"]]:
    """A second image for each anchor, and whether it is of the same class: every other one is.

    Drawn evenly from the other images of the anchor's class (itself, where it has no other), or from all other classes.
    """
    order, counts = labels.argsort(stable=True), labels.bincount()
    start, count = (t[labels[anchors]] for t in (counts.cumsum(0) - counts, counts))
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))[anchors]
    same = torch.arange(len(anchors)) % 2 == 0
    draw = torch.rand(len(anchors), generator=generator, dtype=torch.float64)
    # Within the class: 1 to count - 1 places on, around. Outside: any of the rest, which begins where the class ends.
    near = start + (place - start + (draw * (count - 1)).long() + 1) % count
    far = (start + count + (draw * (len(labels) - count)).long()) % len(labels)
    return order[torch.where(same, near, far)], same
