"""Steering of a sparsity penalty so that L0 comes to a target."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Steering:
    """A controller of the logarithm of the penalty's weight: proportional, integral, and looking ahead.

    L0 answers to the penalty slowly, over some ten steps, and drifts up as the SAE learns. So the controller acts on
    where L0 is going, and sums up errors only once they are small, or L0 stands still.

    Args:
        target: the L0 to come to on held-out tokens; None leaves the penalty as it is.
    """

    PROPORTIONAL, INTEGRAL, AHEAD = 2.5, 0.1, 20.0
    SMOOTH, SETTLED, STILL, LIMIT, MOST, FIRST = 0.9, 0.5, 0.1, 1.0, 20.0, 50

    def __init__(self, target: float | None) -> None:
        self.target = target
        # Steps seen, log L0 (smoothed), its change a step, sum of errors, last error, log of held-out over training L0.
        self._steps, self._level, self._slope, self._sum, self._error, self._shift = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0

    @property
    def factor(self) -> float:
        """What the penalty's weight is multiplied by now."""
        return math.exp(self._sum + self.PROPORTIONAL * self._error)

    def observe(self, l0: float) -> None:
        """Take in the L0 of a training batch."""
        if self.target is None:
            return
        level = math.log(max(l0, 1e-3))
        last = self._level if self._steps else level
        self._level = self.SMOOTH * last + (1 - self.SMOOTH) * level
        self._slope = self.SMOOTH * self._slope + (1 - self.SMOOTH) * (self._level - last)
        self._steps += 1
        # L0 falls from half the latents to few in the first steps, whatever the penalty.
        if self._steps >= self.FIRST:
            error = self._level + self._shift + self.AHEAD * self._slope - math.log(self.target)
            self._error = min(self.LIMIT, max(-self.LIMIT, error))
            # Far from the target, but standing still: the proportional part alone does not reach it.
            if abs(error) < self.SETTLED or abs(self.AHEAD * self._slope) < self.STILL:
                self._sum = min(self.MOST, max(-self.MOST, self._sum + self.INTEGRAL * self._error))

    def calibrate(self, trained: float, held_out: float) -> None:
        """Take in the same SAE's L0 on training tokens and on held-out ones."""
        if self.target is not None and trained > 0 and held_out > 0:
            self._shift = 0.8 * self._shift + 0.2 * math.log(held_out / trained)

    def tensor(self) -> Tensor:
        """Its state, to save."""
        state = (self._steps, self._level, self._slope, self._sum, self._error, self._shift)
        return torch.tensor(state, dtype=torch.float64)

    def restore(self, saved: Tensor) -> None:
        """Take over what `tensor` gave."""
        self._steps, self._level, self._slope, self._sum, self._error, self._shift = saved.tolist()
