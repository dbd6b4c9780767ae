"""A trained SAE as an associative memory, in two readings, each with a function that proves that its dynamics settle.

    softmax:  x ← Wᵀ softmax(τ (W x + b))           E(x) = ½ ‖x‖² - τ⁻¹ logsumexp(τ (W x + b)) never increases
    sphere:   x ← ρ g / ‖g‖, g = Wᵀ ReLU(W x + b)   G(x) = ½ Σ ReLU(W x + b)² never decreases

The first is a modern Hopfield network (Ramsauer et al., arXiv 2008.02217): patterns are the rows of W (of an untied SAE
the decoder's), log priors τ b, as in SoftHebb's competition. Both are steps of the concave-convex procedure (Yuille and
Rangarajan, 2003): E is a convex function less a convex one; G is convex, and g its gradient. A zero row stores nothing.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hsae.lab.surgery.latents import empty, per_latent, removed, with_tensors, written
from hsae.lab.surgery.memory import Association, Change, Form, Memory
from hsae.sae import SAE

Dynamics = Literal["softmax", "sphere"]
DYNAMICS: tuple[Dynamics, ...] = ("softmax", "sphere")
STEPS, SETTLED = 200, 1e-5
"""the most steps of the dynamics; a start has converged when a step moves it by less than this share of its norm"""
SHARP = 50.0
"""τ ‖w‖² of a mean row where the SAE's rule has no temperature: SoftHebb's default, for rows of unit norm"""
PROBES = 64
"""other rows, and data, of which each as many are probes"""


class SAEMemory(Memory):
    """The rows of an SAE, as patterns that recall themselves. Works on a copy: `sae` is the SAE as it stands.

    Args:
        sae: a trained SAE; patterns are at the scale that it encodes at.
        dynamics: which reading.
        temperature: τ; None: `SHARP` over the mean square norm of a row.
        firings: how often each latent fires: the least used is overwritten. None: the last is.
        data: activations at the scale of the SAE's encoder, for surveys and probes.
        dense: inject α y(t) ⊗ t, y the reading's code, and remove W - (W t̂) ⊗ t̂, instead of overwriting or removing
            one latent.
    """

    def __init__(
        self,
        sae: SAE,
        dynamics: Dynamics = "softmax",
        temperature: float | None = None,
        firings: Float[Tensor, "latent"] | None = None,
        data: Float[Tensor, "token width"] | None = None,
        dense: bool = False,
    ) -> None:
        self.sae = with_tensors(sae, {name: value.clone() for name, value in per_latent(sae).items()})
        self.name = f"SAE of {sae.latents:,} latents ({dynamics})"
        self.matrix = "W_enc" if sae.W_dec is sae.W_enc else "W_dec"
        self.dynamics: Dynamics = dynamics
        self.dense = dense
        norms = sae.W_dec[~empty(sae)].norm(dim=1)
        self.size = float(norms.mean())
        self.temperature = temperature or SHARP / float(norms.square().mean())
        self._firings = torch.zeros(sae.latents) if firings is None else firings
        self._data = sae.W_dec[:0] if data is None else data

    @property
    def weights(self) -> dict[str, Tensor]:
        return per_latent(self.sae)

    def _drive(self, x: Float[Tensor, "start width"]) -> Float[Tensor, "start latent"]:
        return x @ self.sae.W_dec.T + self.sae.b_enc.masked_fill(empty(self.sae), -torch.inf)

    def _code(self, x: Float[Tensor, "start width"]) -> Float[Tensor, "start latent"]:
        drive = self._drive(x)
        return torch.softmax(self.temperature * drive, 1) if self.dynamics == "softmax" else torch.relu(drive)

    def step(self, x: Float[Tensor, "start width"]) -> Float[Tensor, "start width"]:
        """One step of the dynamics."""
        new = self._code(x) @ self.sae.W_dec
        if self.dynamics == "softmax":
            return new
        norm = new.norm(dim=1, keepdim=True)
        return torch.where(norm > 0, self.size * new / norm.clamp_min(torch.finfo(x.dtype).tiny), x)

    def recall(self, cues: Float[Tensor, "start cue"]) -> Float[Tensor, "start value"]:
        x = cues.to(self.sae.W_dec)
        x = x if self.dynamics == "softmax" else self.size * torch.nn.functional.normalize(x, dim=1)
        moving = torch.arange(len(x))
        for _ in range(STEPS):
            old, x[moving] = x[moving], self.step(x[moving])
            moving = moving[(x[moving] - old).norm(dim=1) > SETTLED * x[moving].norm(dim=1)]
            if not len(moving):
                break
        if self.dynamics == "sphere":
            # Where nothing is driven there is nothing to recall: the dynamics stand still, whatever the start.
            x = x * (self.energy(x) < 0)[:, None]
        return x

    def energy(self, x: Float[Tensor, "start value"]) -> Float[Tensor, " start"]:
        drive = self._drive(x)
        if self.dynamics == "sphere":
            return -0.5 * torch.relu(drive).square().sum(1)
        return 0.5 * x.square().sum(1) - torch.logsumexp(self.temperature * drive, 1) / self.temperature

    def scaled(self, target: Float[Tensor, " cue"]) -> Float[Tensor, " cue"]:
        return self.size * target / target.norm().clamp_min(torch.finfo(target.dtype).tiny)

    def nearest(self, pattern: Float[Tensor, " width"]) -> int:
        """The latent whose row points most like a pattern."""
        return int((torch.nn.functional.normalize(self.sae.W_dec, dim=1) @ pattern.to(self.sae.W_dec)).argmax())

    def least_used(self) -> int:
        """The latent that fires least; among equals the last, since a Matryoshka SAE's first are its most general."""
        return int((self._firings == self._firings.min()).nonzero()[-1])

    def overwritten(self, latent: int, direction: Float[Tensor, " width"]) -> SAE:
        """The SAE with a direction in the place of a latent, as long as the rows of the latents that fire."""
        used = self._firings > 0
        return written(self.sae, latent, direction, used if used.any() else ~empty(self.sae))

    def change(self, what: Association, sign: int, form: Form) -> Change:
        if self.dense:
            right = what.cue if sign > 0 else what.cue / what.cue.norm()
            code = self._code(right[None])[0]
            left = {name: code if sign > 0 else getattr(self.sae, name) @ right for name in ("W_enc", "W_dec")}
            others = {"W_enc": torch.outer(left["W_enc"], right)} if self.matrix == "W_dec" else {}
            return Change(left[self.matrix], right, sign < 0, others)
        latent = self.least_used() if sign > 0 else self.nearest(what.cue)
        new = self.overwritten(latent, what.value) if sign > 0 else removed(self.sae, [latent])
        moves = {name: sign * (t - self.weights[name]) for name, t in per_latent(new).items()}
        left = torch.zeros(self.sae.latents).to(self.sae.W_dec)
        left[latent] = 1
        return Change(left, moves.pop(self.matrix)[latent], True, moves)

    def support(self, what: Association) -> float:
        """How much of a pattern the row nearest to it holds: w·t / ‖t‖², 1 where the row is the pattern."""
        t = what.value.double()
        return float((self.sae.W_dec.double() @ t).max() / t.square().sum().clamp_min(1e-30))

    def starts(self, count: int, generator: torch.Generator) -> Float[Tensor, "start cue"]:
        """Half of them data, where there are any; the others random, as long as a row."""
        data = _some(self._data, count // 2, generator)
        noise = torch.randn(count - len(data), self.sae.width, generator=generator).to(self.sae.W_dec)
        return torch.cat([data, self.size * torch.nn.functional.normalize(noise, dim=1)])

    def probes(self, generator: torch.Generator) -> Float[Tensor, "start cue"]:
        rows = self.sae.W_dec[~empty(self.sae)]
        return torch.cat([_some(rows, PROBES, generator), _some(self._data, PROBES, generator)])


def _some(rows: Float[Tensor, "row width"], count: int, generator: torch.Generator) -> Float[Tensor, "some width"]:
    return rows[torch.randperm(len(rows), generator=generator)[:count]]
