"""What a local rule does, step by step: who wins, how rows and biases move, and what loss its update descends.

The paper's explanation of SoftHebb (Kurdiukov and Razzhigaev, 2025, section 6) is that Hebbian updates descend the
reconstruction error and anti-Hebbian ones an L1 or L2 penalty on the latents. The cosines here measure that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hsae.alignment import cosine
from hsae.forward import Forward
from hsae.rules import Rule, State, Weights


@dataclass(frozen=True)
class Diagnostics:
    """A local rule's step. Cosines are between weight changes, over all entries; a direction of 0 has cosine 0.

    Attributes:
        winner_entropy: of the distribution of winners (highest drive) over latents, / ln(latents): 0 one wins all.
        usage_gini: Gini coefficient of how often latents fire: 0 all alike, 1 one alone.
        norm_distance: mean over latents of | ‖w‖ - 1 |.
        norm_converged: share of latents whose row's norm is within 0.01 of 1.
        bias_drift: mean over latents of the bias less where it started.
        bias_lowest: lowest bias.
        anti_share: share of the plasticity signal's mass that is negative (anti-Hebbian); None where a rule has none.
        cos_mse: of the displacement with the negative gradient of the mean squared error.
        cos_l1: the same, of Σ|code|.
        cos_l2: the same, of ½ Σ code².
        hebbian_cos_mse: of the Hebbian part alone (signal above 0, Oja's decay included where the rule has it) with the
            negative gradient of the error.
        anti_cos_l1: of the anti-Hebbian part alone with the negative gradient of Σ|code|.
        anti_cos_l2: the same, of ½ Σ code².
    """

    winner_entropy: float
    usage_gini: float
    norm_distance: float
    norm_converged: float
    bias_drift: float
    bias_lowest: float
    cos_mse: float
    cos_l1: float
    cos_l2: float
    anti_share: float | None = None
    hebbian_cos_mse: float | None = None
    anti_cos_l1: float | None = None
    anti_cos_l2: float | None = None


class Diagnosis:
    """Adds up one step's diagnostics over micro-batches.

    Args:
        rule: the encoder's rule.
        start: the encoder's bias before the first step, [latent].
    """

    def __init__(self, rule: Rule, start: Float[Tensor, "latent"]) -> None:
        self._rule, self._start = rule, start
        self._sums: dict[str, Tensor] = {}

    def add(self, forward: Forward, state: State | None = None) -> None:
        """Count a micro-batch, which the rule sees with that state."""
        x, code, latents = forward.x, forward.code, len(forward.encoder.W)
        _, won = forward.encoder.peers.ranked(forward.u, 1)
        active = code.sign()
        back = (forward.error * (2 / forward.width)) @ forward.decoder.W.T
        mse = (back * active.abs()).T @ x
        if forward.tied:
            mse += code.T @ (forward.error * (2 / forward.width))
        self._add("mse", mse)
        self._add("l1", active.T @ x)
        self._add("l2", code.T @ x)
        self._add("fired", active.abs().sum(0))
        self._add("won", torch.bincount(won, minlength=latents).to(x.dtype))
        synapse = forward.synapse("encoder", state)
        signal = self._rule.signal(synapse)
        if signal is not None:
            positive = signal.clamp(min=0)
            negative = signal - positive
            self._add("mass", torch.stack([positive.sum(), -negative.sum()]))
            self._add("hebbian", self._rule.direction(positive, synapse))
            self._add("anti", self._rule.direction(negative, synapse))

    def _add(self, name: str, value: Tensor) -> None:
        self._sums[name] = self._sums[name] + value if name in self._sums else value

    def result(self, before: Weights, after: Weights) -> Diagnostics:
        """The diagnostics of the step that led from `before` to `after`."""
        sums, change, peers = self._sums, after.W - before.W, after.peers
        assert after.b is not None
        norms, drift = after.W.norm(dim=1), after.b - self._start
        distance = (norms - 1).abs()
        split = {}
        if "mass" in sums:
            positive, negative = peers.sum(sums["mass"]).tolist()
            split = {
                "anti_share": negative / (positive + negative) if positive + negative else 0.0,
                "hebbian_cos_mse": cosine(sums["hebbian"], -sums["mse"], peers),
                "anti_cos_l1": cosine(sums["anti"], -sums["l1"], peers),
                "anti_cos_l2": cosine(sums["anti"], -sums["l2"], peers),
            }
        return Diagnostics(
            winner_entropy=entropy(peers.join(sums["won"])),
            usage_gini=gini(peers.join(sums["fired"])),
            norm_distance=peers.mean(distance).item(),
            norm_converged=peers.mean((distance < 0.01).float()).item(),
            bias_drift=peers.mean(drift).item(),
            bias_lowest=-peers.largest(-after.b.min()).item(),
            cos_mse=cosine(change, -sums["mse"], peers),
            cos_l1=cosine(change, -sums["l1"], peers),
            cos_l2=cosine(change, -sums["l2"], peers),
            **split,
        )


def entropy(counts: Float[Tensor, "latent"]) -> float:
    """Entropy of a distribution given by counts, in units of that of the uniform one; 0 for a single latent."""
    share = counts.cpu().double()
    share = share / share.sum().clamp(min=1)
    return torch.special.entr(share).sum().item() / math.log(len(counts)) if len(counts) > 1 else 0.0


def gini(counts: Float[Tensor, "latent"]) -> float:
    """Gini coefficient of counts: half their mean absolute difference, relative to their mean; 0 where all are 0."""
    ordered = counts.cpu().double().sort().values
    total, n = ordered.sum().item(), len(ordered)
    ranks = torch.arange(1, n + 1, dtype=torch.float64)
    return (2 * (ranks @ ordered).item() / total - (n + 1)) / n if total else 0.0
