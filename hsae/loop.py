"""The state of a training, and one step of it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hsae.alignment import Alignment
from hsae.diagnostics import Diagnosis, Diagnostics
from hsae.dist import ONE, Grid
from hsae.divergence import trouble
from hsae.errors import Elsewhere, UserError
from hsae.graph import StepGraph, graphable
from hsae.learner import Learner, Moment, accumulate, combine
from hsae.memory import ran_out
from hsae.metrics import Meter, Metrics, score
from hsae.plain import finite
from hsae.probe import AlignmentProbe, Seen
from hsae.rules.backprop import Backprop
from hsae.run import RunWriter
from hsae.store import Store
from hsae.trainconfig import TrainConfig

# Tokens on which steering compares the L0 of training and held-out data.
STEERED = 4096
# First steps of a process that can begin again with less memory where ranks share a dictionary, beside all logged ones.
ASKED = 20
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
        grid: the processes that train together. All hold the same learners and are given the same batches; each
            computes the statistics of its share of the tokens for its share of the latents, and all take the same
            step from their sum over tokens.
        say: shows the user a line.

    Attributes:
        micro_batch: tokens computed at once, as in the settings; fewer since memory ran out.
        place: plain data, saved with the rest: where in a stream the training stands; None without a stream.
    """

    def __init__(
        self,
        settings: TrainConfig,
        steps: int,
        centres: Mapping[str, Float[Tensor, "width"]],
        scale: float,
        held: Float[Tensor, "token width"],
        grid: Grid = ONE,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.settings, self.steps, self.scale, self.grid, self._say = settings, steps, scale, grid, say
        self.micro_batch = settings.micro_batch
        self.device = next(iter(centres.values())).device
        self.learners = [
            Learner(name, settings.setup[name], seed, settings.latents, centres[name], settings.products, grid.latent)
            for name in settings.setups
            for seed in settings.seeds
        ]
        self._held = held[:STEERED].to(self.device)
        self.step = self._taken = 0
        self.place: Any = None
        self.diverged: dict[int, str] = {}
        self.seconds = [0.0] * len(self.learners)
        self.diagnostics: dict[int, Diagnostics] = {}
        self._diagnosed: set[int] = set()
        self.alignment: dict[int, dict[str, Alignment]] = {}
        self._graphs: dict[int, StepGraph] = {}
        starts = [x.weights["encoder"] for x in self.learners]
        self._start_norm = [x.W.norm() for x in starts]
        self._start_bias = [x.b for x in starts]
        # For each latent here, the number of training tokens seen when it last fired.
        self._last_fired = [torch.zeros(len(x.W), dtype=torch.int64, device=self.device) for x in starts]

    @property
    def active(self) -> list[int]:
        """Indices of the learners that have not diverged."""
        return [i for i in range(len(self.learners)) if i not in self.diverged]

    def advance(self, batch: Float[Tensor, "token width"]) -> list[dict[str, Any]]:
        """One step of every learner; the lines for `metrics.jsonl`, when this step is one that is logged."""
        x = batch.to(self.device) * self.scale
        self.step += 1
        logged = self.step in (1, self.steps) or self.step % self.settings.log_every == 0
        # Each question costs ranks of a dictionary a round, several in each micro-batch. What steps need shows early,
        # and most in those that are logged.
        self.grid.agreement.asked = self.grid.latent.size == 1 or logged or self._taken < ASKED
        self._taken += 1
        centre = x.mean(0) if logged else torch.zeros_like(x[0])
        records = []
        self._diagnosed.clear()
        for i in self.active:
            began = time.perf_counter()
            learner = self.learners[i]
            found = self._learn(i, x, centre, logged)
            if found is not None:
                loss = found.loss if isinstance(found, Metrics) else found
                if reason := trouble(learner, loss, self._start_norm[i]):
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
        """One learner's step: its metrics where they are logged, else its loss where that is known.

        Where memory runs out, at any rank, the step begins again with a smaller micro-batch at all of them.
        """
        learner = self.learners[i]
        while True:
            own = {"weights": dict(learner.weights), "state": dict(learner.state), "steering": copy(learner.steering)}
            before = vars(learner) | own
            try:
                found, fired = self._step(i, x, centre, logged)
                self.grid.agreement.all()
            except Exception as error:
                if not ran_out(error):
                    raise
                if not self.grid.agreement.asked:
                    line = "the same command goes on from the last checkpoint, with fewer tokens at a time if need be"
                    raise UserError(f"out of memory at step {self.step}; {line}") from None
                self.grid.agreement.give_up(error)
            else:
                if fired is not None:
                    self._last_fired[i].masked_fill_(fired > 0, self.step * self.settings.batch_tokens)
                return found
            # Not where it is caught: what the exception still holds is to be free.
            vars(learner).update(before)
            self._shrink(learner, len(x))

    def _shrink(self, learner: Learner, tokens: int) -> None:
        """Halve the micro-batch."""
        now = min(learner.tokens(self.micro_batch), -(-tokens // self.grid.data.size))
        if now == 1:
            line = "1 token at a time: train fewer --latents, --setups or --seeds at once"
            raise Elsewhere if self.grid.everyone.rank else UserError(f"out of memory at step {self.step}, {line}")
        self.micro_batch = now // 2
        self._graphs.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self._say(f"out of memory at step {self.step}: going on with --micro-batch {self.micro_batch}")

    def _step(
        self, i: int, x: Tensor, centre: Tensor, logged: bool
    ) -> tuple[Metrics | float | None, Float[Tensor, "latent"] | None]:
        """What `_learn` gives, and how often each latent fired. Nothing but the learner and its diagnostics changes."""
        learner, ranks = self.learners[i], self.grid.data
        # A captured graph holds a whole step; with other ranks there is a message to them in its middle.
        alone = self.grid.everyone.size == 1 and self.micro_batch == self.settings.micro_batch
        if self.device.type == "cuda" and not logged and alone and graphable(learner):
            if i not in self._graphs:
                more = (learner.products, self.micro_batch)
                self._graphs[i] = StepGraph(learner, len(x), self._last_fired[i], *more)
            self._graphs[i].step(x, Moment(self.step, self.steps))
            return None, None
        revive = learner.setup.revive
        # This batch is counted in the step already, though nothing of it was seen yet.
        window = None if revive is None else revive.tokens + self.settings.batch_tokens
        moment = Moment(self.step, self.steps, None if window is None else self._silent(i, window))
        meter, losses = Meter(centre - learner.centre, len(learner.weights["encoder"].W), learner.peers), []
        # Rules that do not look at the reconstruction are spared it where nobody reads its error.
        watched = self.device.type == "cpu" and not all(rule.blind for rule in learner.rules.values())
        statistics, mine = dict[str, Any](), x[ranks.share(len(x))]
        learner.begin(mine, moment, self.micro_batch, self.grid)
        for forward in learner.forwards(mine, self.micro_batch):
            accumulate(statistics, learner.statistics(forward))
            usage = forward.usage  # first: SoftHebb's kernel has counted it, while the code is not there yet
            if logged:
                meter.add(forward.x, forward.error, usage, forward.beside)
            else:
                loss = float(forward.error.square().sum() + forward.beside) if watched else 0.0
                meter.count(usage, len(forward.x), loss)
            if revive is not None:
                losses.append(forward.error.square().sum(1))
        statistics = combine(statistics, ranks)
        meter.combine(ranks)
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
            loss = torch.cat(ranks.gather(torch.cat(losses)))
            learner.revive(x, loss, replace(moment, dead=moment.dead & (meter.fired == 0)))
        if learner.steering.target is not None:
            if self.step % 10 == 0:
                sae, seen = learner.sae(1.0), min(len(x), STEERED)
                few, block = (x[:seen], self._held), learner.tokens(self.micro_batch)
                learner.steering.calibrate(*(score(sae, rows, block).l0 for rows in few))
            learner.steering.observe(meter.l0)
        if logged:
            return meter.result(), meter.fired
        # On a GPU reading a number waits for it, so there nothing is read before it is logged.
        return meter.loss if self.device.type == "cpu" else None, meter.fired

    def _diagnosis(self, i: int, x: Tensor) -> Diagnosis | None:
        """What a local rule does on the first tokens of a batch, at the first step, the last and some between."""
        learner, start = self.learners[i], self._start_bias[i]
        due = self.step in (1, self.steps) or self.step % (DIAGNOSED_EVERY * self.settings.log_every) == 0
        if not due or start is None or isinstance(learner.setup.encoder, Backprop):
            return None
        diagnosis = Diagnosis(learner.setup.encoder, start)
        for block in x[:DIAGNOSED].split(learner.tokens(self.micro_batch)):
            diagnosis.add(learner.forward(block), learner.state["encoder"])
        return diagnosis

    def _probe(self, learner: Learner, x: Tensor) -> AlignmentProbe:
        """How Hebbian the learning signals are on the first tokens of a batch."""
        probe = AlignmentProbe(learner.rules)
        for block in x[:PROBED].split(learner.tokens(self.micro_batch)):
            probe.add(learner.forward(block, Seen), learner.state)
        return probe

    def aligned(self, i: int) -> dict[str, dict[str, Any]] | None:
        """A learner's last alignment as plain data; None where it was not probed."""
        found = self.alignment.get(i)
        return None if found is None else {side: finite(dataclasses.asdict(each)) for side, each in found.items()}

    def _silent(self, i: int, tokens: int) -> Bool[Tensor, "latent"]:
        """Which latents fired on none of the last so many training tokens."""
        return self.step * self.settings.batch_tokens - self._last_fired[i] >= tokens

    def dead(self, i: int) -> int:
        """How many latents are dead by the settings' window."""
        seen = self.step * self.settings.batch_tokens
        return self.learners[i].peers.count(self._silent(i, min(self.settings.dead_window, seen)))

    def snapshot(self, store: Store) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that going on needs: tensors, and plain data. All of `grid.latent` call, its first gets it."""
        tensors = {}
        for i, learner in enumerate(self.learners):
            tensors |= {f"{i}.{key}": value for key, value in learner.tensors().items()}
            tensors[f"{i}.last_fired"] = learner.peers.collect(self._last_fired[i])
        diagnostics = {i: finite(dataclasses.asdict(d)) for i, d in self.diagnostics.items()}
        alignment = {i: self.aligned(i) for i in self.alignment}
        state = {"step": self.step, "diverged": self.diverged, "seconds": self.seconds, "diagnostics": diagnostics}
        return tensors, state | {"alignment": alignment, "store": store.manifest.fingerprint, "place": self.place}

    def restore(self, writer: RunWriter, store: Store) -> None:
        """Go on from a run's checkpoint, if it has one.

        Raises:
            UserError: the checkpoint was made on other data.
        """
        saved = writer.restore(cut=not self.grid.everyone.rank)
        if saved is None:
            return
        tensors, state = saved
        if state.get("store") != store.manifest.fingerprint:
            raise UserError(f"{writer.folder}: was begun on another store; give another --name, or delete it")
        self.step, self.seconds, self.place = state["step"], state["seconds"], state.get("place")
        self.diverged = {int(i): reason for i, reason in state["diverged"].items()}
        self.diagnostics = {int(i): Diagnostics(**d) for i, d in state["diagnostics"].items()}
        # Checkpoints written before there was a probe have none.
        told = state.get("alignment", {}).items()
        self.alignment = {int(i): {side: Alignment(**a) for side, a in sides.items()} for i, sides in told}
        for i, learner in enumerate(self.learners):
            prefix = f"{i}."
            learner.restore({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
            self._last_fired[i] = learner.peers.mine(tensors[f"{i}.last_fired"]).to(self.device)
        self._graphs.clear()
