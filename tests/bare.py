"""A synapse on its own: a rule may look at activations, drive and code, and fails the test if it asks for more."""

from __future__ import annotations

from typing import NoReturn

import pytest
import torch
from torch import Tensor

from hsae.rules import Synapse, Weights


def bare(x: Tensor, u: Tensor, weights: Weights) -> Synapse:
    """A synapse whose code is ReLU(u)."""

    def asked() -> NoReturn:
        pytest.fail("a local rule asked for a gradient or a residual")

    return Synapse(x, u, torch.relu(u), weights, asked, asked, asked, weights.W, {})
