"""Aux-k (Gao et al., arXiv 2406.04093, A.2): dead latents learn to reconstruct the error that the live ones leave.

Loss: weight · ‖ê - e‖² / width a token, with e the error, held fixed, and ê its reconstruction by the `k` most driven
dead latents; less where fewer than k are dead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hsae.config import require
from hsae.revival import Patient, Revival
from hsae.rules import State, Weights


@dataclass(frozen=True)
class AuxK(Revival):
    """An auxiliary loss for dead latents."""

    gradient: ClassVar[bool] = True

    k: int = 0
    """dead latents that a token may use; 0: half the width of the activations"""
    weight: float = 1 / 32
    """weight of the auxiliary loss"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.k >= 0, "k", "0 or above", self.k)
        require(self.weight > 0, "weight", "above 0", self.weight)

    def auxiliary(self, dead: int, width: int) -> tuple[int, float] | None:
        wanted = self.k or max(1, width // 2)
        return (min(wanted, dead), self.weight * min(1.0, dead / wanted)) if dead else None

    def revive(self, patient: Patient) -> tuple[dict[str, Weights], dict[str, State]] | None:
        return None
