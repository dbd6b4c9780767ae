"""The source's plasticity and its repairs, on the linear layers of a model, by the rules of `hsae.rules`.

After each step of AdamW, for each layer with inputs x and outputs y = W x + b that its forward pass left behind:

    W ← keep · (W + rate · clamp(δ, ±1))        δ = mean over tokens of y xᵀ, for Hebb

Where the input of a layer never changes sign its outputs feed back on it, and every weight runs into the bound

    |W_t| ≤ keepᵗ |W_0| + rate · keep (1 - keepᵗ) / (1 - keep)        (→ 10 by the source's numbers)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hsae.forward import Forward
from hsae.lab.hybrid_lm.arms import Plasticity
from hsae.rules import Rule, State, Weights
from hsae.rules.bcm import BCM
from hsae.rules.hebb import Hebb
from hsae.rules.instar import Instar
from hsae.rules.oja import Oja
from hsae.rules.sanger import Sanger
from hsae.rules.subspace import Subspace
from hsae.sae.relu import ReLU

PRUNE, TARGET, SMOOTH = 0.01, 0.5, 0.99
# Of rate 1: the arm's rate comes after its clamp.
RULES: Mapping[str, Rule] = {
    "hebb": Hebb(lr=1.0, decay=0.0, clamp=0.0, post="code"),
    "oja": Oja(lr=1.0, post="code"),
    "bcm": BCM(lr=1.0, post="code"),
    "sanger": Sanger(lr=1.0, post="code"),
    "subspace": Subspace(lr=1.0, post="code"),
    "instar": Instar(lr=1.0, competition="code", normalise="tokens"),
}
Acts = Float[Tensor, "row position _"]
Losses = Float[Tensor, "row position"]


def bound(rate: float, keep: float, steps: int) -> float:
    """What no weight passes that started at 0, after so many steps."""
    return rate * (steps if keep == 1 else keep * (1 - keep**steps) / (1 - keep))


class Plastic:
    """The local side of a training: watches a model's layers and changes their weights when told to.

    Args:
        model: with `plastic(layers)`.
        arm: how.
        micro: rows of the last micro-batch.
    """

    def __init__(self, model: Any, arm: Plasticity, micro: int) -> None:
        self.model, self.arm, self.calls, self.rule = model, arm, 0, RULES[arm.rule]
        self.weights: list[Tensor] = [layer.weight for layer in model.plastic().values()]
        self.layers: dict[str, nn.Linear] = model.plastic(arm.layers)
        self.states: dict[str, State] = {k: self.rule.start(Weights(v.weight)) for k, v in self.layers.items()}
        self.activity: dict[str, Tensor] = {}
        self.caught: dict[str, tuple[Acts, Acts]] = {}
        self.expected: Tensor | None = None
        self.rows = slice(-micro if arm.batches == "last" else None, None)
        for name, layer in model.plastic().items():
            layer.register_forward_hook(lambda _, x, y, name=name: self._catch(name, x[0], y))

    def _catch(self, name: str, x: Acts, y: Acts) -> None:
        if self.model.training:
            self.caught[name] = x[self.rows].detach(), y[self.rows].detach()

    @torch.no_grad()
    def update(self, ids: Tensor, losses: Losses, factor: float = 1.0) -> None:
        """One step of the rule, on what the layers did last.

        Args:
            ids: the step's tokens, for the negative phase.
            losses: of every token.
            factor: on the rate.
        """
        losses = losses[self.rows].detach()
        self.expected = losses.mean() if self.expected is None else self.expected
        caught = dict(self.caught)
        changes = {name: self._change(name, *caught[name], losses) for name in self.layers}
        self.expected = torch.lerp(losses.mean(), self.expected, SMOOTH)
        if self.arm.signal == "contrastive":
            rows = ids[self.rows]
            order = torch.rand(rows.shape, device=rows.device).argsort(1)
            self.model(rows.gather(1, order))
            changes = {name: changes[name] - self._change(name, *self.caught[name], losses) for name in self.layers}
            self.caught = caught
        for name, layer in self.layers.items():
            self._apply(layer.weight, changes[name], factor)
            if self.arm.homeostasis:
                now = caught[name][1].abs().mean((0, 1))
                mean = self.activity[name] = torch.lerp(now, self.activity.get(name, now), SMOOTH)
                layer.weight.mul_(mean.clamp(min=1e-6).pow(-self.arm.homeostasis)[:, None])

    def _change(self, name: str, x: Acts, y: Acts, losses: Losses) -> Float[Tensor, "latent width"]:
        """What the rule says of a layer."""
        if self.arm.signal == "centred":
            x, y = x - x.mean((0, 1)), y - y.mean((0, 1))
        elif self.arm.signal == "predictive":
            # Each neuron expects the share of its last output that serves best in this batch.
            before, x, y = y[:, :-1], x[:, 1:], y[:, 1:]
            share = (before * y).sum((0, 1)) / before.square().sum((0, 1)).clamp(min=1e-30)
            y = y - share * before
        elif self.arm.signal == "advantage":
            assert self.expected is not None
            y = y * (self.expected - losses)[..., None]
        layer, (x, y) = self.layers[name], (t.flatten(0, 1) for t in (x, y))
        weights = Weights(layer.weight, layer.weight.new_zeros(len(layer.weight)))
        synapse = Forward(x, {"encoder": weights}, ReLU()).synapse("encoder", self.states[name])
        statistics = self.rule.statistics(replace(synapse, code=lambda: y))
        change, self.states[name] = self.rule.displacement(statistics, weights, self.states[name])
        return change.W

    def _apply(self, W: Tensor, change: Float[Tensor, "latent width"], factor: float) -> None:
        arm = self.arm
        if not change.isfinite().all():
            return
        if arm.clamp:
            change = change.clamp(-arm.clamp, arm.clamp)
        if arm.trust:
            change = change * (W.norm() / change.norm().clamp(min=1e-30))
        norms = W.norm(dim=1, keepdim=True)
        W.add_(change, alpha=arm.rate * factor)
        if arm.turning:
            W.mul_(norms / W.norm(dim=1, keepdim=True).clamp(min=1e-30))
        W.mul_(arm.keep)

    @torch.no_grad()
    def prune(self) -> bool:
        """The source's call every thousand steps: pruning, and on every tenth call scaling. Whether it scaled."""
        self.calls += 1
        scales = self.arm.scaling_every > 0 and self.calls % self.arm.scaling_every == 0
        for name, layer in self.model.plastic().items():
            W = layer.weight
            if self.arm.prune != "none":
                weak = W.abs() <= PRUNE
                if self.arm.prune == "activity":
                    x, y = (a.abs().mean((0, 1)) for a in self.caught[name])
                    least = (W.abs() * y[:, None] * x).flatten().argsort(stable=True)[: int(weak.sum())]
                    weak = torch.zeros_like(weak).view(-1).index_fill(0, least, True).view_as(W)
                W.masked_fill_(weak, 0)
            if scales:
                W.mul_(TARGET / W.abs().mean())
        return scales
