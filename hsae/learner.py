"""One SAE being trained: its weights, the state of its rules, and the update that a batch gives it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hsae.dist import ONE, Grid
from hsae.forward import Auxiliary, Forward
from hsae.fused_forward import Products, fused_forward
from hsae.kernels.softhebb import competes
from hsae.kernels.sparse import available, encode
from hsae.ranks import ALONE, Ranks
from hsae.revival import Patient
from hsae.rules import Part, Rule, State, Statistics, Weights
from hsae.rules.backprop import Backprop
from hsae.sae import SAE
from hsae.sae.relu import ReLU
from hsae.settling import fit_gain, settle
from hsae.setup import Setup
from hsae.sparse_forward import SparseForward, highest
from hsae.start import by_latent, initial_weights
from hsae.steering import Steering

# Entries of [token, latent] in a micro-batch on a CPU, for its last cache; and its tokens: with fewer, each costs more.
CELLS, TOKENS = 1 << 21, (256, 512)
# Entries of a sparse code in a micro-batch, and the tokens of a micro-batch that is computed so.
ENTRIES, SPARSE_TOKENS = 1 << 19, 4096
# Above this share of active latents [token, latent] matrices are faster (from 40% with AVX2, 55% with AVX-512).
DENSE = 0.4

F = TypeVar("F", bound=Forward)


@dataclass(frozen=True)
class Moment:
    """Where in the training a step is: the `step`-th of `steps`, and which latents are dead for the setup's revival."""

    step: int
    steps: int
    dead: Bool[Tensor, "latent"] | None = None


class Learner:
    """A setup under one seed.

    Args:
        name: the setup's name.
        setup: its rules and variant.
        seed: of the initial weights.
        latents: size of the dictionary.
        centre: what is taken from activations before the encoder and added after the decoder, [width].
        products: how a GPU multiplies.
        ranks: the processes that share out the dictionary. All call the same methods with the same tokens.

    Attributes:
        peers: those processes, as the weights know them.
        weights: `encoder` and, unless tied, `decoder`: this process's rows.
        state: for each synapse, what its rule carries from step to step.
        l0: active latents a token, in the last micro-batch; below 0 before the first.
    """

    def __init__(
        self,
        name: str,
        setup: Setup,
        seed: int,
        latents: int,
        centre: Float[Tensor, "width"],
        products: Products = "ieee",
        ranks: Ranks = ALONE,
    ) -> None:
        self.name, self.setup, self.seed, self.centre = name, setup, seed, centre.clone()
        self.rules: dict[str, Rule] = {"encoder": setup.encoder}
        if setup.decoder is not None:
            self.rules["decoder"] = setup.decoder
        start = initial_weights(setup, len(centre), latents, seed, ranks)
        self.peers = start["encoder"].peers
        self.weights = {n: self._constrained(n, w.map(lambda t: t.to(centre.device))) for n, w in start.items()}
        self.state: dict[str, State] = {n: rule.start(self.weights[n]) for n, rule in self.rules.items()}
        self.steering = Steering(setup.target_l0 if setup.variant.penalised else None)
        self.l0 = -1.0
        self.products: Products = products
        self._variant = setup.variant
        self._auxiliary: Auxiliary | None = None

    def begin(self, x: Float[Tensor, "token width"], moment: Moment, micro_batch: int = 0, grid: Grid = ONE) -> None:
        """Make ready for a batch: the step's sparsity, the cut over the whole batch, the dead latents' loss.

        Args:
            x: activations, not centred: this process's share of the batch.
            moment: the step.
            micro_batch: tokens computed at once; 0: as many as are fast.
            grid: who has the other shares, and the other latents.
        """
        setup, blocks = self.setup, x.split(self.tokens(micro_batch))
        if setup.init_gain and moment.step == 1:
            settle(self, blocks, grid)
            fit_gain(self, blocks, grid)
        self._variant = setup.variant.weighted(setup.schedule.sparsity(moment.step) * self.steering.factor)
        settle(self, blocks, grid)
        self._auxiliary = None
        if setup.revive is not None and moment.dead is not None:
            dead = moment.dead.nonzero().squeeze(1)
            plan = setup.revive.auxiliary(self.peers.count(moment.dead), len(self.centre))
            self._auxiliary = None if plan is None else Auxiliary(dead, *plan)

    def forward(self, x: Float[Tensor, "token width"], kind: type[F] = Forward) -> F:
        """A micro-batch through the SAE as it stands in training, computed by a kind of `Forward`."""
        return kind(x - self.centre, self.weights, self._variant, self._auxiliary)

    def forwards(self, x: Float[Tensor, "token width"], micro_batch: int = 0) -> Iterator[Forward]:
        """A batch through the SAE, a micro-batch at a time: by sparse codes where that is faster.

        Args:
            x: activations, not centred.
            micro_batch: tokens computed at once; 0: as many as are fast.
        """
        done, dense = 0, self.tokens(micro_batch)
        plain = self.setup.tied and isinstance(self._variant, ReLU)
        if plain and self.setup.encoder.competes and competes(x.device, self.peers):
            # No [token, latent] matrix will be made.
            dense = micro_batch or SPARSE_TOKENS
        while done < len(x):
            if x.device.type == "cuda" and (fused := self._fused_forward(x[done : done + (micro_batch or len(x))])):
                yield fused
                done += len(fused.x)
                continue
            forward = self._sparse_forward(x[done : done + (micro_batch or self._sparse_tokens())])
            if forward is None:
                forward = self.forward(x[done : done + dense])
            yield forward
            done += len(forward.x)
            if self.sparse:
                self.l0 = self.peers.sum(forward.usage.fired.sum()).item() / len(forward.x)

    def _fused_forward(self, x: Float[Tensor, "token width"]) -> Forward | None:
        """A micro-batch by a GPU's fused kernels; None where there are none for it."""
        learned = {name for name, rule in self.rules.items() if isinstance(rule, Backprop)}
        given = (x - self.centre, self.weights, self._variant, learned)
        return fused_forward(*given, self.products, self._auxiliary)

    def tokens(self, micro_batch: int = 0) -> int:
        """Tokens whose [token, latent] matrices are computed at once; 0: as many as are fast."""
        fast = min(max(CELLS // self.peers.most(len(self.weights["encoder"].W)), TOKENS[0]), TOKENS[1])
        return micro_batch or (fast if self.centre.device.type == "cpu" else 1 << 40)

    @cached_property
    def _compiled(self) -> bool:
        """Whether compiled code for sparse codes is there, at all ranks: they must go the same way."""
        return not self.peers.ranks.any(not available(self.centre.device))

    @property
    def sparse(self) -> bool:
        """Whether sparse codes can be used: they can be computed, and all of the setup's rules take them."""
        return self._compiled and all(rule.sparse for rule in self.rules.values())

    def _sparse_tokens(self) -> int:
        """Tokens whose sparse code fits, with as much again to spare."""
        return min(SPARSE_TOKENS, max(64, int(ENTRIES / (2 * self._expected_l0() + 1))))

    def _expected_l0(self) -> float:
        """Active latents a token, as far as is known; half of them before the first step."""
        encoder = self.weights["encoder"]
        selection, latents = self._variant.selection(encoder.extra), self.peers.whole(len(encoder.W))
        if selection is not None and selection.k:
            return float(min(selection.k, latents))
        return latents * 0.5 if self.l0 < 0 else self.l0

    def _sparse_forward(self, x: Float[Tensor, "token width"]) -> SparseForward | None:
        """A micro-batch by its sparse code; None where that cannot be, is slower, or does not fit."""
        encoder, dense = self.weights["encoder"], DENSE * self.peers.whole(len(self.weights["encoder"].W))
        if not self.sparse or self._expected_l0() > dense or x.dtype != torch.float32:
            return None
        selection = self._variant.selection(encoder.extra)
        if selection is None or encoder.b is None:
            return None
        x, room = x - self.centre, int((2 * self._expected_l0() + 64) * len(x))
        code = encode(x, encoder.W, encoder.b, selection, min(room, len(x) * len(encoder.W)))
        # What does not fit at one rank is computed otherwise at all.
        if self.peers.ranks.any(code is None) or code is None:
            return None
        if selection.k:
            code = highest(code, selection.k, self.peers)
        return SparseForward(x, self.weights, self._variant, selection, code, self._auxiliary)

    def statistics(self, forward: Forward) -> dict[str, Statistics]:
        """Each synapse's statistics over a micro-batch."""
        return {name: rule.statistics(forward.synapse(name, self.state[name])) for name, rule in self.rules.items()}

    def update(
        self,
        statistics: Mapping[str, Statistics],
        moment: Moment = Moment(1, 1),
        rate: Float[Tensor, ""] | None = None,
    ) -> None:
        """One step from a whole batch's statistics: every rule displaces the synapses that it serves.

        Args:
            statistics: of each synapse.
            moment: the step.
            rate: the factor on learning rates, where it must be a tensor; else the schedule's for the step.
        """
        served: dict[type[Rule], dict[str, Part]] = defaultdict(dict)
        for name, rule in self.rules.items():
            served[type(rule)][name] = Part(rule, statistics[name], self.weights[name], self.state[name])
        factor = self.setup.schedule.rate(moment.step, moment.steps) if rate is None else rate
        for kind, parts in served.items():
            for name, (change, state) in kind.step(parts).items():
                change = change if rate is None and factor == 1 else change.map(lambda t: t * factor)
                self.weights[name] = self._constrained(name, self.weights[name].plus(change))
                self.state[name] = state

    def revive(self, x: Float[Tensor, "token width"], loss: Float[Tensor, "token"], moment: Moment) -> None:
        """What the setup does for dead latents after a step.

        Args:
            x: the whole batch.
            loss: each token's squared reconstruction error.
            moment: the step, and which latents are dead.
        """
        if self.setup.revive is None or moment.dead is None:
            return
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + moment.step)
        done = moment.step / moment.steps
        x = x - self.centre
        b = self.setup.encoder.bias(self.peers.whole(len(moment.dead)))[:1]
        fresh = self.setup.variant.parameters(1) | {"b": b}
        state, rules = self.state, self.rules
        patient = Patient(x, loss, moment.dead, self.weights, fresh, state, rules, moment.step, done, generator)
        if (changed := self.setup.revive.revive(patient)) is not None:
            self.weights = {name: self._constrained(name, weights) for name, weights in changed[0].items()}
            self.state = changed[1]

    def _constrained(self, name: str, weights: Weights) -> Weights:
        """With unit rows in the matrix that decodes, where the setup asks for them."""
        if self.setup.decoder_norm == "free" or (name == "encoder" and not self.setup.tied):
            return weights
        return replace(weights, W=torch.nn.functional.normalize(weights.W, dim=1))

    def sae(self, scale: float) -> SAE:
        """The SAE as it stands, with the centre folded into its biases; `SAE.joined` has all processes' latents."""
        encoder, decoder = self.weights["encoder"], self.weights.get("decoder", self.weights["encoder"])
        assert encoder.b is not None
        b_enc = encoder.b - encoder.W @ self.centre
        b_dec = self.centre if self.setup.tied or decoder.b is None else self.centre + decoder.b
        own = self.setup.variant.inference(encoder.extra)
        return SAE(encoder.W, b_enc, decoder.W, b_dec, self.setup.variant, scale, own, self.peers)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that going on needs, under flat names; the whole dictionary's, at the first of its ranks."""
        l0 = torch.tensor(self.l0, dtype=torch.float64)
        flat = {"centre": self.centre, "steering": self.steering.tensor(), "l0": l0}
        for name, weights in self.weights.items():
            flat |= {f"{name}.{key}": value for key, value in weights.items().items()}
            flat |= {f"{name}.state.{key}": value for key, value in self.state[name].items()}
        split = by_latent(self.weights, self.rules, self.setup)
        return {key: self.peers.collect(value) if key in split else value for key, value in flat.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` gave, onto this learner's device."""
        device = self.centre.device
        self.centre = tensors["centre"].to(device)
        self.steering.restore(tensors["steering"])
        self.l0 = tensors["l0"].item()
        split = by_latent(self.weights, self.rules, self.setup)

        def mine(key: str) -> Tensor:
            return (self.peers.mine(tensors[key]) if key in split else tensors[key]).to(device)

        for name, weights in self.weights.items():
            own = {key: mine(f"{name}.{key}") for key in weights.items()}
            self.weights[name] = Weights.of(own, self.peers)
            self.state[name] = {key: mine(f"{name}.state.{key}") for key in self.state[name]}


def accumulate(total: dict[str, Statistics], more: Mapping[str, Statistics]) -> None:
    """Add a micro-batch's statistics to the batch's."""
    for name, statistics in more.items():
        there = total.setdefault(name, {})
        for key, value in statistics.items():
            # Not in place: two synapses may have been given the same tensor.
            there[key] = there[key] + value if key in there else value


def combine(statistics: Mapping[str, Statistics], ranks: Ranks) -> dict[str, Statistics]:
    """A batch's statistics from those of the ranks' shares of it."""
    names = [(synapse, key) for synapse, each in statistics.items() for key in each]
    total: dict[str, Statistics] = {}
    for (synapse, key), value in zip(names, ranks.sum([statistics[s][k] for s, k in names]), strict=True):
        total.setdefault(synapse, {})[key] = value
    return total
