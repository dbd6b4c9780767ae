"""One SAE being trained: its weights, the state of its rules, and the update that a batch gives it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from hsae.rules import Part, Rule, State, Statistics, Synapse, Weights
from hsae.sae import SAE, Variant
from hsae.setup import Setup


def initial_weights(setup: Setup, width: int, latents: int, seed: int) -> dict[str, Weights]:
    """Weights before the first step: `encoder`, and `decoder` unless tied.

    The encoder is drawn first, from the seed alone, so that setups under one seed start from the same encoder.
    """
    generator = torch.Generator().manual_seed(seed)
    bound = width**-0.5

    def matrix() -> Tensor:
        if setup.init == "kaiming":
            return torch.empty(latents, width).uniform_(-bound, bound, generator=generator)
        return torch.randn(latents, width, generator=generator) * (setup.init_std or bound)

    W_enc = matrix()
    b_enc = torch.empty(latents).uniform_(-bound, bound, generator=generator)
    encoder = Weights(W_enc, b_enc if setup.init == "kaiming" else setup.encoder.bias(latents))
    return {"encoder": encoder} if setup.tied else {"encoder": encoder, "decoder": Weights(matrix())}


class Forward:
    """One micro-batch through one SAE. Everything is computed once, when first asked for.

    The loss, summed over tokens: ‖x̂ - x‖² / width + the variant's penalty. So its mean over tokens is the mean squared
    error over tokens and dimensions, plus the penalty.
    """

    def __init__(self, x: Float[Tensor, "token width"], weights: Mapping[str, Weights], variant: Variant) -> None:
        self.x, self.variant = x, variant
        self.encoder = weights["encoder"]
        self.tied = "decoder" not in weights
        self.decoder = weights["encoder" if self.tied else "decoder"]
        self.width = x.shape[1]

    @cached_property
    def u(self) -> Float[Tensor, "token latent"]:
        """The drive."""
        assert self.encoder.b is not None
        return (self.x @ self.encoder.W.T).add_(self.encoder.b)

    @cached_property
    def code(self) -> Float[Tensor, "token latent"]:
        """The latents' activations."""
        return self.variant.activate(self.u)

    @cached_property
    def error(self) -> Float[Tensor, "token width"]:
        """Reconstruction minus input."""
        return torch.addmm(self.x, self.code, self.decoder.W, beta=-1)

    @cached_property
    def _through_decoder(self) -> Float[Tensor, "token width"]:
        return self.error * (2 / self.width)

    @cached_property
    def _through_code(self) -> Float[Tensor, "token latent"]:
        return self.variant.backward(self.code, self._through_decoder @ self.decoder.W.T, self.width)

    def _decoder_gradient(self) -> Weights:
        return Weights(self.code.T @ self._through_decoder)

    def _encoder_gradient(self) -> Weights:
        W = self._through_code.T @ self.x
        if self.tied:
            W += self._decoder_gradient().W
        # A product with a row of ones is many times faster than PyTorch's sum over the first dimension.
        return Weights(W, (self.x.new_ones(1, len(self.x)) @ self._through_code).squeeze(0))

    def synapse(self, name: str) -> Synapse:
        """The synapse `encoder` or `decoder`, as a rule sees it."""
        if name == "encoder":
            return Synapse(self.x, self.u, self.code, self.encoder, self._encoder_gradient)
        return Synapse(self.x, self.u, self.code, self.decoder, self._decoder_gradient)


class Learner:
    """A setup under one seed.

    Attributes:
        weights: `encoder` and, unless tied, `decoder`.
        state: for each synapse, what its rule carries from step to step.
    """

    def __init__(self, name: str, setup: Setup, seed: int, width: int, latents: int, device: torch.device) -> None:
        self.name, self.setup, self.seed = name, setup, seed
        start = initial_weights(setup, width, latents, seed)
        self.rules: dict[str, Rule] = {"encoder": setup.encoder}
        if setup.decoder is not None:
            self.rules["decoder"] = setup.decoder
        self.weights = {n: Weights(w.W.to(device), None if w.b is None else w.b.to(device)) for n, w in start.items()}
        self.state: dict[str, State] = {n: rule.start(self.weights[n]) for n, rule in self.rules.items()}

    def forward(self, x: Float[Tensor, "token width"]) -> Forward:
        """A micro-batch through the SAE as it stands."""
        return Forward(x, self.weights, self.setup.sae)

    def statistics(self, forward: Forward) -> dict[str, Statistics]:
        """Each synapse's statistics over a micro-batch."""
        return {name: rule.statistics(forward.synapse(name)) for name, rule in self.rules.items()}

    def update(self, statistics: Mapping[str, Statistics]) -> None:
        """One step from a whole batch's statistics: every rule displaces the synapses that it serves."""
        served: dict[type[Rule], dict[str, Part]] = defaultdict(dict)
        for name, rule in self.rules.items():
            served[type(rule)][name] = Part(rule, statistics[name], self.weights[name], self.state[name])
        for kind, parts in served.items():
            for name, (change, state) in kind.step(parts).items():
                self.weights[name], self.state[name] = self.weights[name].plus(change), state

    def sae(self, scale: float) -> SAE:
        """The SAE as it stands."""
        encoder, decoder = self.weights["encoder"], self.weights.get("decoder", self.weights["encoder"])
        assert encoder.b is not None
        b_dec = torch.zeros(encoder.W.shape[1], device=encoder.W.device)
        return SAE(encoder.W, encoder.b, decoder.W, b_dec, self.setup.sae, scale)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that going on needs, under flat names."""
        flat = {}
        for name, weights in self.weights.items():
            flat[f"{name}.W"] = weights.W
            if weights.b is not None:
                flat[f"{name}.b"] = weights.b
            flat |= {f"{name}.state.{key}": value for key, value in self.state[name].items()}
        return flat

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` gave, onto this learner's device."""
        device = self.weights["encoder"].W.device
        for name, weights in self.weights.items():
            b = None if weights.b is None else tensors[f"{name}.b"].to(device)
            self.weights[name] = Weights(tensors[f"{name}.W"].to(device), b)
            self.state[name] = {key: tensors[f"{name}.state.{key}"].to(device) for key in self.state[name]}


def accumulate(total: dict[str, Statistics], more: Mapping[str, Statistics]) -> None:
    """Add a micro-batch's statistics to the batch's, in place."""
    for name, statistics in more.items():
        if name not in total:
            total[name] = dict(statistics)
        else:
            for key, value in statistics.items():
                total[name][key].add_(value)
