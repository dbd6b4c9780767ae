"""The state of a training, and one step of it."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hsae.alignment import Alignment
from hsae.diagnostics import Diagnosis, Diagnostics
from hsae.errors import UserError
from hsae.graph import StepGraph, graphable
from hsae.learner import Learner, Moment, accumulate
from hsae.metrics import Meter, Metrics, score
from hsae.plain import finite
from hsae.probe import AlignmentProbe, Seen
from hsae.rules.backprop import Backprop
from hsae.run import RunWriter
from hsae.store import Store
from hsae.trainconfig import TrainConfig

# Weights this many times longer than at the start have left every regime that any rule is meant for.
EXPLODED = 1e4
# Tokens on which steering compares the L0 of training and held-out data.
STEERED = 4096
# Local rules are diagnosed at every so many logged steps, on so many tokens: it costs as much as several steps.
DIAGNOSED_EVERY, DIAGNOSED = 10, 4096
# Tokens that alignment is probed on, at every logged step.
PROBED = 2048


class Loop:
    """All learners of a training, side by side. Only it changes state.

    Args:
        settings: of the training.
        steps: how many there will be.
        centres: for each setup, what is taken from the scaled activations, [width]; their device is the training's.
        scale: activations are multiplied by it.
        held: held-out tokens, scaled, that steering looks at.
    """

    def __init__(
        self,
        settings: TrainConfig,
        steps: int,
        centres: Mapping[str, Float[Tensor, "width"]],
        scale: float,
        held: Float[Tensor, "token width"],
    ) -> None:
        self.settings, self.steps, self.scale = settings, steps, scale
        self.device = next(iter(centres.values())).device
        self.learners = [
            Learner(name, settings.setup[name], seed, settings.latents, centres[name], settings.products)
            for name in settings.setups
            for seed in settings.seeds
        ]
        self._held = held[:STEERED].to(self.device)
        self.step = 0
        self.diverged: dict[int, str] = {}
        self.seconds = [0.0] * len(self.learners)
        self.diagnostics: dict[int, Diagnostics] = {}
        self._diagnosed: set[int] = set()
        self.alignment: dict[int, dict[str, Alignment]] = {}
        self._graphs: dict[int, StepGraph] = {}
        starts = [x.weights["encoder"] for x in self.learners]
        self._start_norm = [float(x.W.norm()) for x in starts]
        self._start_bias = [x.b for x in starts]
        # For each latent, the number of training tokens seen when it last fired.
        self._last_fired = [torch.zeros(settings.latents, dtype=torch.int64, device=self.device) for _ in starts]

    @property
    def active(self) -> list[int]:
        """Indices of the learners that have not diverged."""
        return [i for i in range(len(self.learners)) if i not in self.diverged]

    def advance(self, batch: Float[Tensor, "token width"]) -> list[dict[str, Any]]:
        """One step of every learner; the lines for `metrics.jsonl`, when this step is one that is logged."""
        x = batch.to(self.device) * self.scale
        self.step += 1
        logged = self.step in (1, self.steps) or self.step % self.settings.log_every == 0
        centre = x.mean(0) if logged else torch.zeros_like(x[0])
        records = []
        self._diagnosed.clear()
        for i in self.active:
            began = time.perf_counter()
            learner = self.learners[i]
            found = self._learn(i, x, centre, logged)
            if found is not None:
                loss = found.loss if isinstance(found, Metrics) else found
                reason = self._trouble(i, loss)
                if reason:
                    self.diverged[i] = f"{'at' if self.device.type == 'cpu' else 'by'} step {self.step}: {reason}"
                elif isinstance(found, Metrics):
                    head = {"step": self.step, "setup": learner.name, "seed": learner.seed}
                    record = head | finite(dataclasses.asdict(found)) | {"dead": self.dead(i)}
                    if learner.steering.target is not None:
                        record["sparsity"] = learner.steering.factor
                    if i in self._diagnosed:
                        record["rule"] = finite(dataclasses.asdict(self.diagnostics[i]))
                    if self.settings.probe:
                        record["alignment"] = self.aligned(i)
                    records.append(record)
            self.seconds[i] += time.perf_counter() - began
        return records

    def _learn(self, i: int, x: Tensor, centre: Tensor, logged: bool) -> Metrics | float | None:
        """One learner's step: its metrics where they are logged, else its loss where that is known."""
        learner = self.learners[i]
        if self.device.type == "cuda" and not logged and graphable(learner):
            if i not in self._graphs:
                more = (learner.products, self.settings.micro_batch)
                self._graphs[i] = StepGraph(learner, len(x), self._last_fired[i], *more)
            self._graphs[i].step(x, Moment(self.step, self.steps))
            return None
        revive = learner.setup.revive
        # This batch is counted in the step already, though nothing of it was seen yet.
        window = None if revive is None else revive.tokens + self.settings.batch_tokens
        moment = Moment(self.step, self.steps, None if window is None else self._silent(i, window))
        meter, losses = Meter(centre - learner.centre, self.settings.latents), []
        # Rules that do not look at the reconstruction are spared it where nobody reads its error.
        watched = self.device.type == "cpu" and not all(rule.blind for rule in learner.rules.values())
        loss, statistics = 0.0, dict[str, Any]()
        learner.begin(x, moment, self.settings.micro_batch)
        for forward in learner.forwards(x, self.settings.micro_batch, logged or revive is not None):
            accumulate(statistics, learner.statistics(forward))
            if logged:
                meter.add(forward.x, forward.error, forward.usage, forward.beside)
            else:
                meter.count(forward.usage, len(forward.x))
                loss += float(forward.error.square().sum() + forward.beside) if watched else 0.0
            if revive is not None:
                losses.append(forward.error.square().sum(1))
        before = dict(learner.weights) if logged else {}
        diagnosis = self._diagnosis(i, x) if logged else None
        probe = self._probe(learner, x) if logged and self.settings.probe else None
        learner.update(statistics, moment)
        if diagnosis is not None:
            self.diagnostics[i] = diagnosis.result(before["encoder"], learner.weights["encoder"])
            self._diagnosed.add(i)
        if probe is not None:
            self.alignment[i] = probe.result(before, learner.weights)
        if moment.dead is not None:
            learner.revive(x, torch.cat(losses), replace(moment, dead=moment.dead & (meter.fired == 0)))
        self._last_fired[i].masked_fill_(meter.fired > 0, self.step * self.settings.batch_tokens)
        if learner.steering.target is not None:
            if self.step % 10 == 0:
                sae, seen = learner.sae(1.0), min(len(x), STEERED)
                few = (x[:seen], self._held)
                learner.steering.calibrate(*(score(sae, rows, learner.tokens()).l0 for rows in few))
            learner.steering.observe(meter.fired.sum().item() / len(x))
        if logged:
            return meter.result()
        # On a GPU reading a number waits for it, so there nothing is read before it is logged.
        return loss / len(x) if self.device.type == "cpu" else None

    def _diagnosis(self, i: int, x: Tensor) -> Diagnosis | None:
        """What a local rule does on the first tokens of a batch, at the first step, the last and some between."""
        learner, start = self.learners[i], self._start_bias[i]
        due = self.step in (1, self.steps) or self.step % (DIAGNOSED_EVERY * self.settings.log_every) == 0
        if not due or start is None or isinstance(learner.setup.encoder, Backprop):
            return None
        diagnosis = Diagnosis(learner.setup.encoder, start)
        for block in x[:DIAGNOSED].split(learner.tokens(self.settings.micro_batch)):
            diagnosis.add(learner.forward(block), learner.state["encoder"])
        return diagnosis

    def _probe(self, learner: Learner, x: Tensor) -> AlignmentProbe:
        """How Hebbian the learning signals are on the first tokens of a batch."""
        probe = AlignmentProbe(learner.rules)
        for block in x[:PROBED].split(learner.tokens(self.settings.micro_batch)):
            probe.add(learner.forward(block, Seen), learner.state)
        return probe

    def aligned(self, i: int) -> dict[str, dict[str, Any]] | None:
        """A learner's last alignment as plain data; None where it was not probed."""
        found = self.alignment.get(i)
        return None if found is None else {side: finite(dataclasses.asdict(each)) for side, each in found.items()}

    def _trouble(self, i: int, loss: float) -> str | None:
        """Which quantity left its bounds and the likely cause, or None."""
        learner = self.learners[i]
        rate = "a learning rate too high for the scale of the activations"
        hint = (
            f"{rate}; lower --setup.{learner.name}.encoder.lr, or scale the activations with --normalise.mode variance"
        )
        if not math.isfinite(loss):
            return f"the loss is {loss}; likely {hint}"
        for name, weights in learner.weights.items():
            for part, value in weights.items().items():
                if not math.isfinite(norm := value.norm().item()):
                    return f"the norm of the {name}'s {part} is {norm}; likely {hint}"
            if weights.W.norm().item() > EXPLODED * self._start_norm[i]:
                return f"the {name}'s weights grew {EXPLODED:.0e} times; likely a rule without decay, or {hint}"
        return None

    def _silent(self, i: int, tokens: int) -> Bool[Tensor, "latent"]:
        """Which latents fired on none of the last so many training tokens."""
        return self.step * self.settings.batch_tokens - self._last_fired[i] >= tokens

    def dead(self, i: int) -> int:
        """How many latents are dead by the settings' window."""
        seen = self.step * self.settings.batch_tokens
        return int(self._silent(i, min(self.settings.dead_window, seen)).sum())

    def snapshot(self, store: Store) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that going on needs: tensors, and plain data."""
        tensors = {}
        for i, learner in enumerate(self.learners):
            tensors |= {f"{i}.{key}": value for key, value in learner.tensors().items()}
            tensors[f"{i}.last_fired"] = self._last_fired[i]
        diagnostics = {i: finite(dataclasses.asdict(d)) for i, d in self.diagnostics.items()}
        alignment = {i: self.aligned(i) for i in self.alignment}
        state = {"step": self.step, "diverged": self.diverged, "seconds": self.seconds, "diagnostics": diagnostics}
        return tensors, state | {"alignment": alignment, "store": store.manifest.fingerprint}

    def restore(self, writer: RunWriter, store: Store) -> None:
        """Go on from a run's checkpoint, if it has one.

        Raises:
            UserError: the checkpoint was made on other data.
        """
        saved = writer.restore()
        if saved is None:
            return
        tensors, state = saved
        if state.get("store") != store.manifest.fingerprint:
            raise UserError(f"{writer.folder}: was begun on another store; give another --name, or delete it")
        self.step, self.seconds = state["step"], state["seconds"]
        self.diverged = {int(i): reason for i, reason in state["diverged"].items()}
        self.diagnostics = {int(i): Diagnostics(**d) for i, d in state["diagnostics"].items()}
        # Checkpoints written before there was a probe have none.
        told = state.get("alignment", {}).items()
        self.alignment = {int(i): {side: Alignment(**a) for side, a in sides.items()} for i, sides in told}
        for i, learner in enumerate(self.learners):
            prefix = f"{i}."
            learner.restore({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
            self._last_fired[i] = tensors[f"{i}.last_fired"].to(self.device)
        self._graphs.clear()
