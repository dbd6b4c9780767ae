"""Resampling (Bricken et al., "Towards Monosemanticity", 2023): a dead latent starts anew at a badly explained token.

Every `every` steps a token is drawn for each dead latent, with probability proportional to its loss squared. The
latent's encoder row becomes that token's direction, `gain` times as long as live rows are on average, with the bias
that training starts from; its decoder row the same direction, as long as live ones. Its rule forgets what it knew.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from hsae.config import require
from hsae.revival import Patient, Revival
from hsae.rules import State, Weights


@dataclass(frozen=True)
class Resample(Revival):
    """Dead latents are drawn anew from badly explained tokens."""

    every: int = 100
    """steps between resamplings"""
    share: float = 0.8
    """none after this share of the training's steps, so that the last ones can settle"""
    gain: float = 1.0
    """length of a new encoder row, in lengths of live ones; 0.2 in the source, too short to win a competition"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.every >= 1, "every", "1 or above", self.every)
        require(0 < self.share <= 1, "share", "in (0, 1]", self.share)
        require(self.gain > 0, "gain", "above 0", self.gain)

    def revive(self, patient: Patient) -> tuple[dict[str, Weights], dict[str, State]] | None:
        peers = patient.weights["encoder"].peers
        if patient.step % self.every or patient.done > self.share or not peers.count(patient.dead):
            return None
        return replace_rows(patient, patient.x, self.gain)


def replace_rows(
    patient: Patient, directions: Float[Tensor, "token width"], gain: float
) -> tuple[dict[str, Weights], dict[str, State]]:
    """Every dead latent begins anew along one of the tokens' `directions`, drawn by the tokens' loss squared."""
    dead, peers = patient.dead, patient.weights["encoder"].peers
    chance = patient.loss.cpu().double().square()
    chance = chance if 0 < float(chance.sum()) < math.inf else torch.ones_like(chance)
    # Every rank draws for all dead latents, and takes what falls to its own.
    everywhere = peers.join(dead).cpu()
    drawn = torch.multinomial(chance, int(everywhere.sum()), replacement=True, generator=patient.generator)
    first = int(everywhere[: peers.first].sum())
    drawn = drawn[first : first + int(dead.sum())]
    rows = torch.nn.functional.normalize(directions[drawn.to(directions.device)], dim=1)
    weights, state = {}, {}
    for name, old in patient.weights.items():
        length = peers.mean(old.W[~dead].norm(dim=1)) if peers.count(~dead) else old.W.new_ones(())
        W, b = old.W.clone(), old.b
        # A tied matrix serves as encoder and decoder: it takes the decoder's length.
        W[dead] = rows * length * (gain if name == "encoder" and "decoder" in patient.weights else 1.0)
        if name == "encoder" and b is not None:
            b = torch.where(dead, patient.fresh["b"].to(b), b)
        # What silenced a latent may have been its threshold: it starts anew too.
        extra = {
            key: torch.where(dead, patient.fresh[key].to(value), value) if value.ndim else value
            for key, value in old.extra.items()
        }
        weights[name] = replace(old, W=W, b=b, extra=extra)
        state[name] = patient.rules[name].forget(patient.state[name], dead, name, peers)
    return weights, state
