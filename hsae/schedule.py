"""How learning rates and the sparsity penalty change over a training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from hsae.config import require


@dataclass(frozen=True)
class Schedule:
    """Factors on every rule's displacement and on the sparsity penalty, by the step."""

    warmup: int = 0
    """steps over which learning rates rise from 0"""
    decay: Literal["none", "linear", "cosine"] = "none"
    """how learning rates fall at the end"""
    decay_share: float = 1.0
    """the share of the steps, at the end, in which they fall"""
    final: float = 0.0
    """the factor that they fall to, just after the last step"""
    sparsity_warmup: int = 0
    """steps over which the sparsity penalty rises from 0"""

    def __post_init__(self) -> None:
        require(self.warmup >= 0, "warmup", "0 or above", self.warmup)
        require(0 < self.decay_share <= 1, "decay_share", "in (0, 1]", self.decay_share)
        require(0 <= self.final <= 1, "final", "in [0, 1]", self.final)
        require(self.sparsity_warmup >= 0, "sparsity_warmup", "0 or above", self.sparsity_warmup)

    def rate(self, step: int, steps: int) -> float:
        """The factor on learning rates at step 1 … `steps`."""
        rising = min(1.0, step / (self.warmup + 1))
        if self.decay == "none":
            return rising
        begins = max(self.warmup, steps - round(self.decay_share * steps))
        done = min(1.0, max(0.0, (step - 1 - begins) / max(1, steps - begins)))
        left = 1 - done if self.decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return rising * (self.final + (1 - self.final) * left)

    def sparsity(self, step: int) -> float:
        """The factor on the sparsity penalty at step 1, 2, …"""
        return min(1.0, step / (self.sparsity_warmup + 1))
