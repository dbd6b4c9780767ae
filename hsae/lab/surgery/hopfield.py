"""The polynomial Hopfield layer of the source, with the energy that its dynamics do not increase."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from hsae.errors import UserError
from hsae.lab.surgery.memory import Association, Change, Form, Memory

STEPS, FIRST, LAST, STILL = 100, 0.9, 0.1, 5e-3
AMPLITUDE = 0.9


class Hopfield(Memory):
    """x ← (1 - τ) x + τ tanh(β W f(x)) with f(x) = sign(x) |x|^(n-1); at most 100 steps, τ from 0.9 to 0.1, until
    ‖Δx‖ < 0.005 ‖x‖ (the source's dynamics). Computed in float64.

    Args:
        W: symmetric for there to be an energy; the given tensor is the one that edits change.
        degree: n, 2 or above.
        beta: above 0.

    Raises:
        UserError: W is not square or not finite.
    """

    matrix, odd = "W", True

    def __init__(self, W: Float[Tensor, "out in"], degree: int = 3, beta: float = 7.0, name: str = "hopfield") -> None:
        if W.ndim != 2 or W.shape[0] != W.shape[1]:
            raise UserError(f"{name}: a Hopfield layer's matrix is square, and this one is {list(W.shape)}")
        if not W.is_floating_point() or not bool(W.isfinite().all()) or not bool(W.any()):
            raise UserError(f"{name}: the matrix is all zero, or has entries that are not finite numbers")
        self.W, self.degree, self.beta, self.name = W, degree, beta, name

    @classmethod
    def made(cls, memories: Float[Tensor, "memory width"], degree: int = 3, beta: float = 7.0) -> Hopfield:
        """The layer that stores patterns by Hebb's rule, W = PᵀP / d."""
        return cls(memories.double().T @ memories.double() / memories.shape[1], degree, beta)

    @property
    def weights(self) -> dict[str, Tensor]:
        return {"W": self.W}

    def f(self, x: Float[Tensor, "*start width"]) -> Float[Tensor, "*start width"]:
        """sign(x) |x|^(n-1)."""
        return x.sign() * x.abs() ** (self.degree - 1)

    def trajectory(self, x: Float[Tensor, "start width"]) -> Iterator[Float[Tensor, "start width"]]:
        """The states, the starts first; a start that has converged stays where it is."""
        x, W = x.double(), self.W.double()
        moving = torch.ones(len(x), 1, dtype=torch.bool, device=x.device)
        yield x
        for step in range(STEPS):
            tau = FIRST + (LAST - FIRST) * step / (STEPS - 1)
            change = tau * ((self.beta * self.f(x) @ W.T).tanh() - x) * moving
            x = x + change
            yield x
            moving &= change.norm(dim=1, keepdim=True) >= STILL * x.norm(dim=1, keepdim=True).clamp_min(1e-30)
            if not moving.any():
                return

    def recall(self, cues: Float[Tensor, "start cue"]) -> Float[Tensor, "start value"]:
        *_, last = self.trajectory(cues)
        return last

    def energy(self, x: Float[Tensor, "start value"]) -> Float[Tensor, " start"] | None:
        """`lyapunov` of a symmetric matrix; None for others, along whose dynamics it may rise."""
        W = self.W.double()
        return self.lyapunov(x) if (W - W.T).norm() <= 1e-6 * W.norm() else None

    def lyapunov(self, x: Float[Tensor, "start value"]) -> Float[Tensor, " start"]:
        """E = -½ vᵀWv + (1/β) Σ ∫_0^|x| artanh(t) f′(t) dt with v = f(x), |x| < 1. Never increases if W is symmetric
        and positive semidefinite (for every τ), or symmetric (for small τ)."""
        x = x.double().clamp(-1 + 1e-15, 1 - 1e-15)
        v, size = self.f(x), x.abs()
        # By parts: |x|^(n-1) artanh|x| less the integral of t^(n-1) / (1 - t²), which goes down by twos.
        m = self.degree - 1
        integral = torch.atanh(size) if m % 2 == 0 else -0.5 * torch.log1p(-size * size)
        for k in range(1 + m % 2, m, 2):
            integral = integral - size**k / k
        barrier = size**m * torch.atanh(size) - integral
        return -0.5 * (v * (v @ self.W.double().T)).sum(1) + barrier.sum(1) / self.beta

    def source_energy(self, x: Float[Tensor, "start value"]) -> Float[Tensor, " start"]:
        """What the source documents as energy, "lower is more stable": -(1/n) Σ|x|^n + ½ xᵀ W f(x). It has the wrong
        sign: the dynamics increase it."""
        x = x.double()
        field = (x * (self.f(x) @ self.W.double().T)).sum(1)
        return 0.5 * field - (x.abs() ** self.degree).sum(1) / self.degree

    def scaled(self, target: Float[Tensor, " cue"]) -> Float[Tensor, " cue"]:
        """The source's: a target of norm below 2 is brought to ½√d."""
        width = len(self.W)
        if target.shape != (width,):
            raise UserError(f"{self.name}: stores vectors of {width} numbers, and the target has {list(target.shape)}")
        target = target.double()
        return target if target.norm() >= 2 else target * (0.5 * math.sqrt(width) / target.norm())

    def storable(self, target: Float[Tensor, " cue"]) -> Float[Tensor, " cue"]:
        """0.9 times the signs: a steep tanh can hold nothing else."""
        return AMPLITUDE * target.sign()

    def change(self, what: Association, sign: int, form: Form) -> Change:
        reads = self.f(what.cue.double())
        return Change(reads if form == "symmetric" else what.cue.double(), reads)

    def reads(self, what: Association) -> Float[Tensor, " in"]:
        return self.f(what.cue.double())

    def starts(self, count: int, generator: torch.Generator) -> Float[Tensor, "start cue"]:
        return 0.5 * torch.randn(count, len(self.W), generator=generator, dtype=torch.float64).to(self.W.device)

    def probes(self, generator: torch.Generator) -> Float[Tensor, "start cue"]:
        """Where 64 random starts lead, eight times each, with 15% of the signs flipped."""
        ends = self.recall(self.starts(64, generator)).repeat(8, 1)
        flips = torch.rand(ends.shape, generator=generator, dtype=torch.float64).to(ends.device) < 0.15
        return ends * torch.where(flips, -1.0, 1.0)


def random_memories(count: int, width: int, generator: torch.Generator) -> Float[Tensor, "memory width"]:
    """Patterns of +1 and -1."""
    return torch.randint(0, 2, (count, width), generator=generator).double() * 2 - 1
