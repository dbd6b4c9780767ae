"""Learning rules, one per file. A rule is two steps, so that micro-batches, ranks and kernels all give the same update:

1. `statistics(synapse)`: sums over the tokens of a micro-batch, linear in the batch;
2. `displacement(statistics, weights, state)`: the pointwise rest (normalisation, adaptive rate, sign, Adam).

Backpropagation is a rule too: its statistics are the gradients. A rule never changes what it is given.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from hsae.config import Registered

Statistics = dict[str, Shaped[Tensor, "..."]]
State = dict[str, Shaped[Tensor, "..."]]


@dataclass(frozen=True)
class Weights:
    """The parameters of one synapse, one latent per row; or a change of them."""

    W: Float[Tensor, "latent width"]
    b: Float[Tensor, "latent"] | None = None

    def plus(self, change: Weights) -> Weights:
        """The sum. The bias stays as it is where the change has none."""
        b = self.b if self.b is None or change.b is None else self.b + change.b
        return Weights(self.W + change.W, b)


@dataclass(frozen=True)
class Synapse:
    """What a rule may look at: one layer between the model's activations and the latents, over one micro-batch.

    Attributes:
        x: activations on the model's side, [token, width].
        u: the latents' drive before the activation function, bias included, [token, latent].
        y: the latents' code after it, [token, latent].
        weights: the layer's weights.
        gradient: computes the sum over tokens of the loss gradient for these weights. Only backpropagation calls it.
    """

    x: Float[Tensor, "token width"]
    u: Float[Tensor, "token latent"]
    y: Float[Tensor, "token latent"]
    weights: Weights
    gradient: Callable[[], Weights]


@dataclass(frozen=True)
class Part:
    """One synapse's share of an update: its rule, the batch's statistics, the weights behind them, the rule's state."""

    rule: Rule
    statistics: Statistics
    weights: Weights
    state: State


@dataclass(frozen=True)
class Rule(Registered, ABC):
    """A learning rule; its fields are its settings."""

    package: ClassVar[str] = "hsae.rules"
    selector: ClassVar[str] = "rule"

    def bias(self, latents: int) -> Float[Tensor, "latent"]:
        """The encoder bias that training starts from."""
        return torch.zeros(latents)

    def start(self, weights: Weights) -> State:
        """The state that the rule carries from step to step (optimiser moments, thresholds); nothing, for most."""
        return {}

    @abstractmethod
    def statistics(self, synapse: Synapse) -> Statistics:
        """Sums over the tokens of a micro-batch. Adding those of two micro-batches must give those of both together."""

    @abstractmethod
    def displacement(self, statistics: Statistics, weights: Weights, state: State) -> tuple[Weights, State]:
        """The change to add to the weights, and the next state."""

    @classmethod
    def step(cls, parts: Mapping[str, Part]) -> dict[str, tuple[Weights, State]]:
        """Displacements of all synapses of one SAE that rules of this class serve, whatever their settings.

        One by one, unless the class couples them (backpropagation clips the norm of all gradients together).
        """
        return {name: p.rule.displacement(p.statistics, p.weights, p.state) for name, p in parts.items()}
