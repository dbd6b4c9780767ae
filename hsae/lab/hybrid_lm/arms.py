"""What an arm is: how backpropagation and a local rule share the weights. The defaults are the source's."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

from hsae.config import require


@dataclass(frozen=True)
class Plasticity:
    """Who changes the weights and how."""

    mode: Literal["backprop", "hybrid", "hebbian", "warm-start"] = "hybrid"
    """AdamW alone; and after each of its steps the rule; the rule alone; or the rule first, then AdamW alone"""
    rule: Literal["hebb", "oja", "bcm", "sanger", "subspace", "instar"] = "hebb"
    """of hsae/rules, with y, the layer's output with its bias, in the code's place"""
    signal: Literal["output", "centred", "predictive", "advantage", "contrastive"] = "output"
    """what the rule takes for y: the output; less its mean, as x is; less its prediction from the token before; times
    what the token's loss is below its running mean; or the rule's change on text, less that on shuffled tokens"""
    layers: Literal["all", "attention"] = "all"
    """the layers that the rule changes"""
    batches: Literal["last", "all"] = "last"
    """the rows of a step that the rule sees: the last micro-batch, or all"""
    rate: float = 1e-3
    """learning rate of the rule"""
    clamp: float = 1.0
    """largest entry of the rule's change before the rate; 0: no bound"""
    keep: float = 0.9999
    """the share of the weights that a step leaves, after the rule"""
    tied: bool = False
    """the rule's rate follows AdamW's schedule"""
    trust: bool = False
    """the change of a tensor has the norm rate · ‖W‖, whatever the rule says of its size"""
    turning: bool = False
    """rows keep their norm: the rule only turns them"""
    homeostasis: float = 0.0
    """the exponent γ in W_k ← W_k (1 / a_k)^γ, a_k the running mean of neuron k's |y|; 0: none"""
    prune: Literal["magnitude", "activity", "none"] = "magnitude"
    """five times a training: weights below 0.01 are set to 0; as many, by least |W_ki| · E|x_i| · E|y_k|; or none"""
    scaling_every: int = 10
    """W ← W · 0.5 / mean|W| on each of those calls whose number this divides; 0: never"""
    schedule: Literal["cosine", "constant"] = "cosine"
    """AdamW's learning rate after its warm-up"""
    warm_share: float = 0.1
    """the share of a warm-start's steps that are the rule's"""

    def __post_init__(self) -> None:
        require(self.rate > 0, "rate", "above 0", self.rate)
        require(self.clamp >= 0, "clamp", "0 or above", self.clamp)
        require(0 < self.keep <= 1, "keep", "in (0, 1]", self.keep)
        require(0 <= self.homeostasis <= 1, "homeostasis", "in [0, 1]", self.homeostasis)
        require(self.scaling_every >= 0, "scaling_every", "0 or above", self.scaling_every)
        require(0 < self.warm_share < 1, "warm_share", "in (0, 1)", self.warm_share)

    def changed(self) -> dict[str, object]:
        """The fields that are not as the source has them."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}


SOURCE = Plasticity()
BACKPROP = replace(SOURCE, mode="backprop")

ORDERING = {"backprop": BACKPROP, "hybrid": SOURCE, "hebbian": replace(SOURCE, mode="hebbian")}
DEFECTS = {
    "constant-lr": replace(SOURCE, schedule="constant"),
    "tied": replace(SOURCE, tied=True),
    "scaling-runs": replace(SOURCE, scaling_every=1),
    "backprop-scaling-runs": replace(BACKPROP, scaling_every=1),
    "backprop-no-prune": replace(BACKPROP, prune="none"),
    "all-batches": replace(SOURCE, batches="all"),
    "rate-1e-2-no-clamp": replace(SOURCE, rate=1e-2, clamp=0.0),
}
REPAIRS = {
    "oja": replace(SOURCE, rule="oja"),
    "bcm": replace(SOURCE, rule="bcm"),
    "subspace": replace(SOURCE, rule="subspace"),
    "row-norms-kept": replace(SOURCE, turning=True),
    "centred": replace(SOURCE, signal="centred"),
    "contrastive": replace(SOURCE, signal="contrastive"),
    "predictive": replace(SOURCE, signal="predictive"),
    "three-factor": replace(SOURCE, signal="advantage"),
    "attention-only": replace(SOURCE, layers="attention"),
    "warm-start": replace(SOURCE, mode="warm-start"),
    "trust-ratio": replace(SOURCE, trust=True),
    "homeostasis": replace(SOURCE, homeostasis=0.05),
    "oja-tied": replace(SOURCE, rule="oja", tied=True),
    "bcm-tied": replace(SOURCE, rule="bcm", tied=True),
    "activity-pruning": replace(BACKPROP, prune="activity"),
}
ARMS = ORDERING | DEFECTS | REPAIRS
PARTS = {"ordering": ORDERING, "defects": DEFECTS, "repairs": REPAIRS}
