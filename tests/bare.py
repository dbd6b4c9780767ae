"""A synapse on its own: a rule may look at activations, drive and code, and fails the test if it asks for more."""

from __future__ import annotations

from typing import NoReturn

import pytest
import torch
from torch import Tensor

from hsae.kernels.softhebb import Competition
from hsae.rules import Synapse, Usage, Weights


def bare(x: Tensor, u: Tensor, weights: Weights) -> Synapse:
    """A synapse whose code is ReLU(u)."""

    def asked() -> NoReturn:
        pytest.fail("a local rule asked for a gradient or a residual")

    def competition(temperature: float, signed: bool) -> Competition:
        return Competition.of(u, x, temperature, signed)

    code = torch.relu(u)
    usage = lambda: Usage.of(code)  # noqa: E731
    return Synapse(x, lambda: u, lambda: code, weights, asked, asked, asked, usage, competition, weights.W, {})
