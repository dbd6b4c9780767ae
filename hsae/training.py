"""`hsae train`: the one training loop, for all setups and seeds in one reading of the store. Only it changes state."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hsae import config
from hsae.device import choose_device
from hsae.errors import UserError
from hsae.files import alone, cache_root
from hsae.interrupt import interruptible
from hsae.learner import Learner, accumulate
from hsae.metrics import Meter, Metrics
from hsae.progress import Training
from hsae.run import INDIFFERENT, RESULT, Result, Row, Run, RunWriter
from hsae.store import HookRecord, Store
from hsae.store.reader import RowStream
from hsae.trainconfig import TrainConfig

# Weights this many times longer than at the start have left every regime that any rule is meant for.
EXPLODED = 1e4


def train(settings: TrainConfig, progress: Training | None = None) -> Run:
    """Train, or go on with a run that was cut off, or return one that is finished.

    Args:
        settings: what to train. The same settings on the same store name the same run.
        progress: shows the work; none by default.

    Returns:
        the finished run. A setup that diverges is stopped and marked; the others go on.

    Raises:
        UserError: the store, the hook point, the sizes or the device do not allow it.
        KeyboardInterrupt: on Ctrl-C, after a checkpoint; the same call goes on from there.
    """
    progress = progress or Training()
    store = Store.open(settings.store)
    hook, record = store.hook(settings.hook)
    resolved = _resolved(settings, store, hook)
    folder = cache_root() / "runs" / (settings.name or f"{store.name}-{_identity(resolved, store)}")
    device = choose_device(settings.device)
    if (folder / RESULT).exists():
        run = Run(folder)
        if run.result.store_fingerprint != store.manifest.fingerprint:
            raise UserError(f"{folder}: was trained on another store; give another --name, or delete it")
        RunWriter(folder, resolved)
        progress.say(f"{folder} is already trained: nothing to do")
        return run
    scale = settings.normalise.scale(record)
    held_out = _held_out_sequences(settings, store)
    rows = store.rows(hook, settings.data_seed, held_out)
    steps = _steps(settings, store, rows)
    loop = Loop(settings, record.width, device, scale)
    with alone(folder, "hsae train"):
        writer = RunWriter(folder, resolved)
        loop.restore(writer, store)
        begun = f", going on from step {loop.step}" if loop.step else ""
        count = f"{steps:,} step{'' if steps == 1 else 's'}"
        progress.say(f"{folder}: {count} of {settings.batch_tokens:,} tokens on {device}{begun}")
        _warn(settings, record, scale, steps, progress)
        _fit(loop, store, rows, steps, writer, progress)
        held = _held_out(store, hook, held_out, settings.held_out) * scale
        saes = {(x.name, x.seed): x.sae(scale) for i, x in enumerate(loop.learners) if i not in loop.diverged}
        if settings.normalise.fold:
            saes = {key: sae.folded() for key, sae in saes.items()}
        result = Result(
            version=1,
            store=resolved["store"],
            store_fingerprint=store.manifest.fingerprint,
            model=store.manifest.model,
            hook=hook,
            width=record.width,
            latents=settings.latents,
            scale=scale,
            folded=settings.normalise.fold,
            steps=loop.step,
            tokens=loop.step * settings.batch_tokens,
            held_out=len(held),
            dead_window=settings.dead_window,
            rows=tuple(loop.row(i, held.to(device)) for i in range(len(loop.learners))),
        )
        return writer.finish(saes, result)


def _fit(loop: Loop, store: Store, rows: RowStream, steps: int, writer: RunWriter, progress: Training) -> None:
    """The training loop: from the loop's step to the last, with checkpoints on the way."""
    settings = loop.settings
    with interruptible() as interrupted, progress.bar(steps, loop.step, settings.batch_tokens) as bar:
        saved, told = time.monotonic(), set(loop.diverged)
        batches = rows.batches(settings.batch_tokens, start=loop.step * settings.batch_tokens)
        while loop.step < steps and loop.active:
            records = loop.advance(next(batches), last=loop.step + 1 == steps)
            if records:
                writer.log(records)
            progress.update(records)
            bar.advance(settings.batch_tokens)
            for i in loop.diverged.keys() - told:
                told.add(i)
                progress.say(f"{loop.learners[i].name} (seed {loop.learners[i].seed}): diverged {loop.diverged[i]}")
            stop = interrupted()
            if stop or loop.step == steps or time.monotonic() - saved >= settings.checkpoint_seconds:
                writer.checkpoint(*loop.snapshot(store))
                saved = time.monotonic()
            if stop:
                raise KeyboardInterrupt(f"stopped at step {loop.step} of {steps}; the same command goes on from there")


class Loop:
    """The state of training, and one step of it."""

    def __init__(self, settings: TrainConfig, width: int, device: torch.device, scale: float) -> None:
        self.settings, self.device, self.scale = settings, device, scale
        self.micro_batch = settings.micro_batch or (512 if device.type == "cpu" else settings.batch_tokens)
        self.learners = [
            Learner(name, settings.setup[name], seed, width, settings.latents, device)
            for name in settings.setups
            for seed in settings.seeds
        ]
        self.step = 0
        self.diverged: dict[int, str] = {}
        self._seconds = [0.0] * len(self.learners)
        self._start_norm = [float(x.weights["encoder"].W.norm()) for x in self.learners]
        # For each latent, the number of training tokens seen when it last fired.
        self._last_fired = [torch.zeros(settings.latents, dtype=torch.int64, device=device) for _ in self.learners]

    @property
    def active(self) -> list[int]:
        """Indices of the learners that have not diverged."""
        return [i for i in range(len(self.learners)) if i not in self.diverged]

    def advance(self, batch: Float[Tensor, "token width"], last: bool) -> list[dict[str, Any]]:
        """One step of every learner; the lines for `metrics.jsonl`, when this step is one that is logged."""
        x = batch.to(self.device) * self.scale
        centre = x.mean(0)
        self.step += 1
        logged = last or self.step % self.settings.log_every == 0 or self.step == 1
        records = []
        for i in self.active:
            began = time.perf_counter()
            learner = self.learners[i]
            meter = Meter(centre, self.settings.latents)
            statistics: dict[str, Any] = {}
            for block in x.split(self.micro_batch):
                forward = learner.forward(block)
                meter.add(block, forward.error, forward.code, learner.setup.sae.penalty(forward.code, block.shape[1]))
                accumulate(statistics, learner.statistics(forward))
            learner.update(statistics)
            self._last_fired[i].masked_fill_(meter.fired > 0, self.step * self.settings.batch_tokens)
            # On a GPU reading a result waits for it, so there it is read only when it is logged.
            if logged or self.device.type == "cpu":
                metrics = meter.result()
                reason = self._trouble(i, metrics)
                if reason:
                    self.diverged[i] = f"{'at' if self.device.type == 'cpu' else 'by'} step {self.step}: {reason}"
                elif logged:
                    head = {"step": self.step, "setup": learner.name, "seed": learner.seed}
                    records.append(head | _finite(dataclasses.asdict(metrics)) | {"dead": self._dead(i)})
            self._seconds[i] += time.perf_counter() - began
        return records

    def _trouble(self, i: int, metrics: Metrics) -> str | None:
        """Which quantity left its bounds and the likely cause, or None."""
        learner = self.learners[i]
        rate = "a learning rate too high for the scale of the activations"
        hint = (
            f"{rate}; lower --setup.{learner.name}.encoder.lr, or scale the activations with --normalise.mode variance"
        )
        if not math.isfinite(metrics.loss):
            return f"the loss is {metrics.loss}; likely {hint}"
        for name, weights in learner.weights.items():
            for part, value in (("W", weights.W), ("b", weights.b)):
                if value is not None and not math.isfinite(norm := value.norm().item()):
                    return f"the norm of the {name}'s {part} is {norm}; likely {hint}"
            if weights.W.norm().item() > EXPLODED * self._start_norm[i]:
                return f"the {name}'s weights grew {EXPLODED:.0e} times; likely a rule without decay, or {hint}"
        return None

    def _dead(self, i: int) -> int:
        seen = self.step * self.settings.batch_tokens
        return int((seen - self._last_fired[i] >= min(self.settings.dead_window, seen)).sum())

    def row(self, i: int, held: Float[Tensor, "token width"]) -> Row:
        """A learner's line of the run's table, measured on held-out tokens (at the training scale)."""
        learner = self.learners[i]
        seconds = self._seconds[i]
        speed = self.step * self.settings.batch_tokens / seconds if seconds else None
        if i in self.diverged:
            return Row(learner.name, learner.seed, diverged=self.diverged[i])
        meter = Meter(held.double().mean(0).float(), self.settings.latents)
        for block in held.split(self.micro_batch):
            forward = learner.forward(block)
            meter.add(block, forward.error, forward.code, learner.setup.sae.penalty(forward.code, block.shape[1]))
        values = dataclasses.asdict(meter.result())
        shared = {f.name: values[f.name] for f in dataclasses.fields(Row) if f.name in values}
        return Row(
            setup=learner.name, seed=learner.seed, dead=self._dead(i), tokens_per_second=speed, **_finite(shared)
        )

    def snapshot(self, store: Store) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that going on needs: tensors, and plain data."""
        tensors = {}
        for i, learner in enumerate(self.learners):
            tensors |= {f"{i}.{key}": value for key, value in learner.tensors().items()}
            tensors[f"{i}.last_fired"] = self._last_fired[i]
        state = {"step": self.step, "diverged": self.diverged, "seconds": self._seconds}
        return tensors, state | {"store": store.manifest.fingerprint}

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
        self.step, self._seconds = state["step"], state["seconds"]
        self.diverged = {int(i): reason for i, reason in state["diverged"].items()}
        for i, learner in enumerate(self.learners):
            prefix = f"{i}."
            learner.restore(
                {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            )
            self._last_fired[i] = tensors[f"{i}.last_fired"].to(self.device)


def _resolved(settings: TrainConfig, store: Store, hook: str) -> dict[str, Any]:
    named = str(store.folder) if store.folder.parent != cache_root() / "activations" else store.name
    return config.table(dataclasses.replace(settings, store=named, hook=hook))


def _identity(resolved: Mapping[str, Any], store: Store) -> str:
    """What tells runs on a store apart: all settings that change the result, and the store's bytes."""
    settings = {key: value for key, value in resolved.items() if key not in ("name", "store", *INDIFFERENT)}
    return config.fingerprint([settings, store.manifest.fingerprint])


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same numbers, None for those that JSON cannot hold."""
    return {key: value if math.isfinite(value) else None for key, value in values.items()}


def _held_out_sequences(settings: TrainConfig, store: Store) -> int:
    """How many of the store's last sequences are held out."""
    held_out, there = -(-settings.held_out // store.manifest.context), store.manifest.sequences
    if held_out >= there:
        raise UserError(
            f"store {store.name} has {there} sequences, {held_out} of them would be held out: "
            "harvest more, or lower --held-out"
        )
    return held_out


def _steps(settings: TrainConfig, store: Store, rows: RowStream) -> int:
    """How many steps the settings ask for."""
    steps = settings.steps or int(settings.epochs * rows.rows_per_epoch) // settings.batch_tokens
    if steps == 0:
        raise UserError(
            f"store {store.name} has {rows.rows_per_epoch} tokens to train on, fewer than one batch of "
            f"{settings.batch_tokens}: harvest more, lower --batch-tokens, or raise --epochs"
        )
    return steps


def _warn(settings: TrainConfig, record: HookRecord, scale: float, steps: int, progress: Training) -> None:
    """Say what makes a poor run: data far from what the defaults are made for (the paper's), or very few steps."""
    if steps < 50:
        progress.say("note: few steps; a smaller --batch-tokens or more --epochs make more of this store")
    variance = record.variance * scale**2
    if not 1 / 4 < variance / 5.6e-4 < 4 and settings.normalise.mode == "none":
        progress.say(
            f"note: variance per dimension is {variance:.2g}, the default settings are made for 5.6e-4; "
            "--normalise.mode variance scales to it"
        )


def _held_out(store: Store, hook: str, sequences: int, tokens: int) -> Float[Tensor, "token width"]:
    first = store.manifest.sequences - sequences
    rows = torch.cat([chunk.activations[chunk.keep] for chunk in store.chunks(hook, 64, first)])[:tokens]
    if len(rows) == 0:
        raise UserError(f"store {store.name}: no position of the last {sequences} sequences counts; raise --held-out")
    return rows
