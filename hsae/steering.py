"""Steering of a sparsity penalty so that L0 comes to a target."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Steering:
    """A proportional-integral controller of the logarithm of the penalty's weight.

    Args:
        target: the L0 to come to; None leaves the penalty as it is.
    """

    # Chosen so that the penalty moves by a factor of e in about 30 steps when L0 is off by as much: slower than the
    # optimiser answers, or the two swing against each other.
    INTEGRAL, PROPORTIONAL, LIMIT = 0.03, 0.5, 1.0

    def __init__(self, target: float | None) -> None:
        self.target = target
        self._integral, self._error = 0.0, 0.0

    @property
    def factor(self) -> float:
        """What the penalty's weight is multiplied by now."""
        return math.exp(self._integral + self.PROPORTIONAL * self._error)

    def observe(self, l0: float) -> None:
        """Take in the L0 of a batch."""
        if self.target is not None:
            error = math.log(max(l0, 1e-3) / self.target)
            self._error = min(self.LIMIT, max(-self.LIMIT, error))
            self._integral += self.INTEGRAL * self._error

    def tensor(self) -> Tensor:
        """Its state, to save."""
        return torch.tensor([self._integral, self._error], dtype=torch.float64)

    def restore(self, saved: Tensor) -> None:
        """Take over what `tensor` gave."""
        self._integral, self._error = saved.tolist()
