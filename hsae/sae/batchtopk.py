"""BatchTopK (Bussmann et al., arXiv 2412.06410): the k·tokens highest positive drives of a whole batch; no penalty.

So tokens may use more or fewer latents, k on average. The cut is found exactly and over the whole batch, whatever its
micro-batches: halfway from the lowest drive kept to the next. The trained SAE cuts at the running average of the lowest
kept in training's batches, and so needs no batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from hsae.across import HERE, Peers, kth_highest
from hsae.config import require
from hsae.dist import ONE, Grid
from hsae.sae import NONE, Parameters, Selection, Variant


@dataclass(frozen=True)
class BatchTopK(Variant):
    """The most driven latents of each batch, k a token on average."""

    pointwise: ClassVar[bool] = True
    whole_batch: ClassVar[bool] = True

    k: float = 32
    """latents that a token uses on average"""
    memory: float = 0.98
    """decay of the running average of the cut"""

    def __post_init__(self) -> None:
        require(self.k > 0, "k", "above 0", self.k)
        require(0 <= self.memory < 1, "memory", "in [0, 1)", self.memory)

    def parameters(self, latents: int) -> dict[str, Tensor]:
        return {"threshold": torch.zeros(()), "cut": torch.zeros(())}

    def settle(
        self,
        above: Callable[[Float[Tensor, ""]], Float[Tensor, "drive"]],
        tokens: int,
        parameters: Parameters,
        grid: Grid = ONE,
    ) -> Parameters:
        wanted, last = max(1, round(self.k * tokens)), parameters["cut"]
        # Half the last cut leaves few candidates. Where it leaves too few, every positive drive is one.
        for floor in (last / 2, torch.zeros_like(last)):
            candidates = above(floor)
            there = int(grid.total(torch.tensor(len(candidates))))
            if there > wanted:
                break
        least = cut = torch.zeros_like(last)
        if there > wanted:
            least = kth_highest(candidates, wanted, grid)
            # The drives are computed again for the code, by another kernel or in micro-batches of another shape: cut at
            # the lowest itself, and by its last bit it would fall out.
            lower = torch.where(candidates < least, candidates, floor).amax() if len(candidates) else floor
            cut = (least + grid.latent.largest(grid.data.largest(lower))) / 2
        first = parameters["threshold"] == 0
        threshold = torch.where(first, least, self.memory * parameters["threshold"] + (1 - self.memory) * least)
        return {"threshold": threshold, "cut": cut}

    def inference(self, parameters: Parameters) -> dict[str, Tensor]:
        return {"threshold": parameters["threshold"]}

    def activate(
        self, u: Float[Tensor, "token latent"], parameters: Parameters = NONE, peers: Peers = HERE
    ) -> Float[Tensor, "token latent"]:
        return torch.where(u >= self._cut(parameters), u, 0).relu_()

    def selection(self, parameters: Parameters = NONE) -> Selection | None:
        return Selection(least=float(self._cut(parameters)))

    @staticmethod
    def _cut(parameters: Parameters) -> Float[Tensor, ""]:
        """The batch's own cut in training, the trained threshold after it."""
        return parameters["cut"] if "cut" in parameters else parameters["threshold"]

    def aimed(self, l0: float) -> BatchTopK:
        return replace(self, k=l0)

    def rescaled(self, parameters: Parameters, scale: float) -> dict[str, Tensor]:
        return {name: value / scale for name, value in parameters.items()}
