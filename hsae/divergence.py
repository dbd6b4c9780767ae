"""Whether a training has diverged: which quantity left its bounds, and why it likely did."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from hsae.learner import Learner

# Weights this many times longer than at the start have left every regime that any rule is meant for.
EXPLODED = 1e4


def trouble(learner: Learner, loss: float, start: Float[Tensor, ""]) -> str | None:
    """Which quantity left its bounds and the likely cause, or None.

    Args:
        learner: after a step. All processes that share out its dictionary call.
        loss: of the step's batch.
        start: the norm of the encoder's matrix before the first step, of this process's rows.
    """
    rate = "a learning rate too high for the scale of the activations"
    hint = f"{rate}; lower --setup.{learner.name}.encoder.lr, or scale the activations with --normalise.mode variance"
    if not math.isfinite(loss):
        return f"the loss is {loss}; likely {hint}"
    every = {(name, part): v for name, w in learner.weights.items() for part, v in w.items().items()}
    lengths = learner.peers.length(torch.stack([*(value.norm() for value in every.values()), start]))
    *norms, beginning = lengths.tolist()
    for (name, part), norm in zip(every, norms, strict=True):
        if not math.isfinite(norm):
            return f"the norm of the {name}'s {part} is {norm}; likely {hint}"
        if part == "W" and norm > EXPLODED * beginning:
            return f"the {name}'s weights grew {EXPLODED:.0e} times; likely a rule without decay, or {hint}"
    return None
