"""What one SAE finds over a whole batch before a step: the cut of BatchTopK's kind, and the scale it begins with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from hsae.dist import Grid
from hsae.kernels.sparse import encode
from hsae.sae import Selection

if TYPE_CHECKING:
    from hsae.learner import Learner


def settle(learner: Learner, blocks: Sequence[Float[Tensor, "_ width"]], grid: Grid) -> None:
    """Set what the variant finds over the whole batch.

    Args:
        learner: the SAE; its encoder's extra parameters change.
        blocks: this process's share of the batch, in micro-batches, not centred.
        grid: who has the other shares, and the other latents.
    """
    variant, encoder = learner.setup.variant, learner.weights["encoder"]
    if variant.whole_batch:

        def above(floor: Tensor) -> Tensor:
            return torch.cat([_above(learner, floor, block) for block in blocks])

        (tokens,) = grid.data.sum([torch.tensor(sum(map(len, blocks)))])
        extra = variant.settle(above, int(tokens), encoder.extra, grid)
        learner.weights["encoder"] = replace(encoder, extra=dict(extra))


def _above(learner: Learner, floor: Float[Tensor, ""], x: Float[Tensor, "token width"]) -> Float[Tensor, "drive"]:
    """All drives of a micro-batch that are above a number."""
    encoder = learner.weights["encoder"]
    if learner.sparse and encoder.b is not None:
        least = torch.nextafter(floor, torch.tensor(torch.inf)).item()
        room = max(len(x) * len(encoder.W) // 4, 1)
        if (code := encode(x - learner.centre, encoder.W, encoder.b, Selection(least=least), room)) is not None:
            return code.value
    u = learner.forward(x).u
    return u[u > floor]


def fit_gain(learner: Learner, blocks: Sequence[Float[Tensor, "_ width"]], grid: Grid) -> None:
    """Scale the encoder so that reconstructions are as long as what they reconstruct; the arguments of `settle`."""
    match = torch.zeros(2, dtype=torch.float64)
    for block in blocks:
        forward = learner.forward(block)
        made = forward.x + forward.error
        match += torch.stack([(made * forward.x).sum(), made.square().sum()]).cpu()
    (match,) = grid.data.sum([match])
    gain = (match[0] / match[1]).item() if match[1] > 0 else 1.0
    encoder = learner.weights["encoder"]
    if gain > 0:
        b = None if encoder.b is None else encoder.b * gain
        extra = learner.setup.variant.rescaled(encoder.extra, 1 / gain)
        learner.weights["encoder"] = replace(encoder, W=encoder.W * gain, b=b, extra=extra)
