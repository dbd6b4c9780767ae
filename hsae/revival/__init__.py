"""What is done for dead latents, one way per file. A latent is dead when it fired on none of the last tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hsae.config import Registered, require
from hsae.rules import Rule, State, Weights


@dataclass(frozen=True)
class Patient:
    """What a revival sees after a step: a whole batch, and the SAE that it left behind.

    Attributes:
        x: the batch, centred, [token, width].
        loss: each token's squared reconstruction error before the step, [token].
        dead: which latents are dead, [latent].
        weights: of each synapse, after the step.
        fresh: the encoder's bias `b` and the variant's own parameters as training starts with them, for one latent.
        state: of each synapse's rule, after the step.
        rules: of each synapse.
        step: the number of steps taken.
        done: the share of the training's steps taken.
        generator: seeded by the learner's seed and the step.
    """

    x: Float[Tensor, "token width"]
    loss: Float[Tensor, "token"]
    dead: Bool[Tensor, "latent"]
    weights: Mapping[str, Weights]
    fresh: Mapping[str, Tensor]
    state: Mapping[str, State]
    rules: Mapping[str, Rule]
    step: int
    done: float
    generator: torch.Generator


@dataclass(frozen=True)
class Revival(Registered, ABC):
    """A way to bring dead latents back; its fields are its settings."""

    package: ClassVar[str] = "hsae.revival"
    selector: ClassVar[str] = "kind"
    gradient: ClassVar[bool] = False
    """works through the loss, so only for synapses that backpropagation trains"""

    tokens: int = 100_000
    """a latent is dead when it fired on none of this many last training tokens"""

    def __post_init__(self) -> None:
        require(self.tokens >= 1, "tokens", "1 or above", self.tokens)

    def auxiliary(self, dead: int, width: int) -> tuple[int, float] | None:
        """How many dead latents a token may use to reconstruct the error, and that loss's weight; None: no such."""
        return None

    @abstractmethod
    def revive(self, patient: Patient) -> tuple[dict[str, Weights], dict[str, State]] | None:
        """The weights and states after the revival; None where nothing is done at this step."""
