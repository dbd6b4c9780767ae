"""What an operation says of itself. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hsae.errors import UserError


@dataclass(frozen=True)
class Protocol:
    """How associations are verified: noisy starts, the same at every call. A start comes back if the cosine of what it
    leads to with the value is above `threshold`.

    Attributes:
        seed: of the noise, of surveys and of probes.
        trials: starts, at least 20 for an interval that says something.
        noise: ‖noise‖ / ‖cue‖; per coordinate (the source's convention), the standard deviation of each over ‖cue‖.
    """

    seed: int = 0
    trials: int = 20
    threshold: float = 0.9
    noise: float = 0.1
    convention: Literal["norm", "per-coordinate"] = "norm"


@dataclass(frozen=True)
class Verdict:
    """How many starts came back, the share with Wilson's 95% interval, and the mean cosine with the value."""

    hits: int
    trials: int
    rate: float
    low: float
    high: float
    cosine: float


@dataclass(frozen=True)
class Basins:
    """What a survey found, the most populated first. `mirror[i]`: the basin at -p of basin i, -1 for none; `empty`: the
    starts that led to zero; `energy`: none where the memory has none."""

    patterns: Float[Tensor, "basin width"]
    population: tuple[int, ...]
    energy: tuple[float, ...]
    mirror: tuple[int, ...]
    empty: int


@dataclass(frozen=True)
class Difference:
    """How one matrix differs from another: rank, ‖ΔW‖_F / ‖W‖_F, and how much ‖W‖_F itself grew, relatively."""

    rank: int
    norm: float
    growth: float


@dataclass(frozen=True)
class Reading:
    """What is measured before an edit, and after. For a move, `target` is its destination and `origin` its source.

    Attributes:
        mirror: the verdict at -p, where the memory is odd.
        support, energy, measures: `Memory.support` and `Memory.energy` at the target, and `Memory.measures`.
    """

    target: Verdict
    mirror: Verdict | None
    origin: Verdict | None
    protected: tuple[Verdict, ...]
    support: float
    energy: float | None
    measures: dict[str, float]


@dataclass(frozen=True)
class Certificate:
    """What an edit did.

    Attributes:
        achieved: every start comes back (inject), none does (remove), both (move), or the support is as asked.
        restored: something protected was lost, or no strength did it: the weights are as before; the rest says what the
            edit had done until then.
        strength: ‖ΔW‖_F / ‖W‖_F meant for each outer product; `auto`: found by search.
        rank, norm: rank(ΔW) and ‖ΔW‖_F / ‖W‖_F as measured.
        probes, moved, drift: how many ordinary cues were compared (those of the target left out), the share that now
            leads elsewhere (cosine at most 0.9), and the relative change of what they lead to.
        notes: why the weights were restored.
    """

    operation: str
    memory: str
    achieved: bool
    restored: bool
    strength: tuple[float, ...]
    auto: bool
    rank: int
    norm: float
    before: Reading
    after: Reading
    probes: int
    moved: float
    drift: float
    anchor: str
    form: str
    protocol: Protocol
    notes: tuple[str, ...] = ()


def difference(old: Float[Tensor, "out in"], new: Float[Tensor, "out in"]) -> Difference:
    """How one matrix differs from another.

    Raises:
        UserError: of different shapes.
    """
    if old.shape != new.shape:
        raise UserError(f"matrices of different shapes, {list(old.shape)} and {list(new.shape)}, cannot be compared")
    size, grown = float(old.double().norm()), float(new.double().norm())
    change = new.double() - old.double()
    # Rounding to the weights' type leaves singular values below this.
    rank = int((torch.linalg.svdvals(change) > 2 * torch.finfo(new.dtype).eps * max(size, grown)).sum())
    return Difference(rank, float(change.norm()) / size, grown / size - 1)
