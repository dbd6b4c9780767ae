"""Homeostasis: a latent that does not fire becomes more excitable, step by step, until it does. No gradient is needed.

Each step a dead latent's bias rises by rate · ‖w‖ · rms(x), with rms(x) the root mean square of one input: that is the
standard deviation of the drive of a row of its length that points anywhere. The latent needs to know nothing but
that it was silent. Of the kind in Zylberberg et al., PLoS Comput. Biol. 7 (2011) e1002250 (SAILnet's thresholds).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hsae.config import require
from hsae.revival import Patient, Revival
from hsae.rules import State, Weights


@dataclass(frozen=True)
class Homeostasis(Revival):
    """Dead latents grow more excitable until they fire."""

    rate: float = 0.02
    """rise of the bias a step, in standard deviations of the drive"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rate > 0, "rate", "above 0", self.rate)

    def revive(self, patient: Patient) -> tuple[dict[str, Weights], dict[str, State]] | None:
        encoder = patient.weights["encoder"]
        assert encoder.b is not None
        spread = encoder.W.norm(dim=1) * patient.x.square().mean().sqrt()
        raised = encoder.b + self.rate * spread * patient.dead
        return {**patient.weights, "encoder": replace(encoder, b=raised)}, dict(patient.state)
