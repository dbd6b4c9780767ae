"""Learning rules, one per file. A rule is two steps, so that micro-batches, ranks and kernels all give the same update:

1. `statistics(synapse)`: sums over the tokens of a micro-batch, linear in the batch;
2. `displacement(statistics, weights, state)`: the pointwise rest (normalisation, adaptive rate, sign, Adam).

A rule sees the latents of one rank. What it sums, seeks or normalises over latents it asks `weights.peers` for.
Backpropagation is a rule too: its statistics are the gradients. A rule never changes what it is given.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from hsae.across import HERE, Peers
from hsae.config import Registered

if TYPE_CHECKING:
    from hsae.kernels.softhebb import Competition
    from hsae.kernels.sparse import Code

Statistics = dict[str, Shaped[Tensor, "..."]]
State = dict[str, Shaped[Tensor, "..."]]


@dataclass(frozen=True)
class Weights:
    """The parameters of one synapse, one latent per row; or a change of them, or their gradient.

    Attributes:
        W: [latent, width].
        b: the bias: [latent] in an encoder, [width] in a decoder; None where there is none.
        extra: the SAE variant's own parameters (thresholds, gains), in an encoder.
        peers: who holds the dictionary's other latents. Whatever is summed, sought or normalised over latents goes
            through it; a change of weights, or their gradient, may be without.
    """

    W: Float[Tensor, "latent width"]
    b: Float[Tensor, "_"] | None = None
    extra: Mapping[str, Float[Tensor, "..."]] = field(default_factory=dict)
    peers: Peers = HERE

    def plus(self, change: Weights) -> Weights:
        """The sum. What the change lacks stays as it is."""
        b = self.b if self.b is None or change.b is None else self.b + change.b
        moved = {name: self.extra[name] + value for name, value in change.extra.items()}
        return Weights(self.W + change.W, b, {**self.extra, **moved}, self.peers)

    def items(self) -> dict[str, Tensor]:
        """Every tensor under its name: `W`, `b`, and those of `extra`."""
        return {"W": self.W} | ({} if self.b is None else {"b": self.b}) | dict(self.extra)

    def map(self, function: Callable[[Tensor], Tensor]) -> Weights:
        """The same with `function` applied to every tensor."""
        return Weights.of({name: function(value) for name, value in self.items().items()}, self.peers)

    @classmethod
    def of(cls, items: Mapping[str, Tensor], peers: Peers = HERE) -> Weights:
        """The weights that `items` gave."""
        return cls(items["W"], items.get("b"), {k: v for k, v in items.items() if k not in ("W", "b")}, peers)


@dataclass(frozen=True)
class Usage:
    """How often and how strongly the latents fired on some tokens.

    Attributes:
        fired: each latent's number of tokens, [latent].
        total: the sum of all activations, of the latents that are here.
        squares: computes each latent's sum of squared activations, [latent].
    """

    fired: Float[Tensor, "latent"]
    total: Float[Tensor, ""]
    squares: Callable[[], Float[Tensor, "latent"]]

    @classmethod
    def of(cls, code: Float[Tensor, "token latent"]) -> Usage:
        """Of a code, which is nowhere below 0."""
        # A product with a row of ones adds up several times faster than a reduction, over booleans above all.
        ones = code.new_ones(1, len(code))
        return cls(ones.mm(code.sign()).squeeze(0), code.sum(), lambda: ones.mm(code.square()).squeeze(0))


@dataclass(frozen=True)
class Synapse:
    """What a rule may look at: one layer between the model's activations and the latents, over one micro-batch.

    What is a callable here is computed when a rule asks for it.

    Attributes:
        x: activations on the model's side, [token, width].
        drive: gives `u`.
        code: gives `y`.
        weights: the layer's weights.
        gradient: computes the sum over tokens of the loss gradient for these weights. Only backpropagation calls it.
        residual: computes the input less its reconstruction, [token, width].
        explained: computes the sum over tokens of the code times the residual, [latent, width].
        usage: computes how often and how strongly latents fire.
        competition: computes SoftHebb's sums for an inverse temperature, signed or not, by the encoder's drive.
        dictionary: the weights that decode, [latent, width].
        state: what the rule carries from step to step.
        sparse: the code as its active entries, where it was computed so; rules that can make use of it.
    """

    x: Float[Tensor, "token width"]
    drive: Callable[[], Float[Tensor, "token latent"]]
    code: Callable[[], Float[Tensor, "token latent"]]
    weights: Weights
    gradient: Callable[[], Weights]
    residual: Callable[[], Float[Tensor, "token width"]]
    explained: Callable[[], Float[Tensor, "latent width"]]
    usage: Callable[[], Usage]
    competition: Callable[[float, bool], Competition]
    dictionary: Float[Tensor, "latent width"]
    state: State
    sparse: Code | None = None

    @property
    def u(self) -> Float[Tensor, "token latent"]:
        """The latents' drive before the activation function, bias included."""
        return self.drive()

    @property
    def y(self) -> Float[Tensor, "token latent"]:
        """The latents' code after it."""
        return self.code()


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
    encoder_only: ClassVar[bool] = False
    """makes no sense as a decoder's rule"""
    sparse: ClassVar[bool] = False
    """takes a sparse code as it is, without asking for the drive or the code as matrices"""
    blind: ClassVar[bool] = True
    """does not look at what the reconstruction leaves over"""

    @property
    def competes(self) -> bool:
        """Asks a synapse for nothing but `competition`."""
        return False

    def bias(self, latents: int) -> Float[Tensor, "latent"]:
        """The encoder bias that training starts from."""
        return torch.zeros(latents)

    def start(self, weights: Weights) -> State:
        """The state that the rule carries from step to step (optimiser moments, thresholds); nothing, for most."""
        return {}

    def forget(self, state: State, dead: Bool[Tensor, "latent"], side: str, peers: Peers = HERE) -> State:
        """The state with nothing remembered of the latents that start anew.

        Args:
            state: the rule's.
            dead: which latents they are.
            side: `encoder` or `decoder`.
            peers: who holds the others.
        """
        return state

    def direction(self, signal: Float[Tensor, "token latent"], synapse: Synapse) -> Float[Tensor, "latent width"]:
        """The change of W that a post-synaptic signal stands for, before any rate: for diagnostics."""
        return signal.T @ synapse.x

    def signal(self, synapse: Synapse) -> Float[Tensor, "token latent"] | None:
        """The post-synaptic signal that activations are multiplied by, where the rule has one: for diagnostics."""
        return None

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


def cleared(state: State, names: Iterable[str], dead: Bool[Tensor, "latent"]) -> State:
    """A state in which the tensors of these names, with a row a latent, are 0 for the latents that start anew."""
    rows = {name: dead.reshape(-1, *[1] * (state[name].ndim - 1)) for name in names if name in state}
    return state | {name: state[name].masked_fill(row, 0) for name, row in rows.items()}
