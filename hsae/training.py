"""`hsae train`: the one training loop, for all setups and seeds in one reading of the store. Only it changes state."""

from __future__ import annotations

import dataclasses
import errno
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hsae import config
from hsae.device import choose_device
from hsae.dist import Grid, grid
from hsae.errors import Interrupted, UserError
from hsae.files import alone, cache_root
from hsae.graph import on_device
from hsae.held_out import held_out_rows, held_out_sequences
from hsae.interrupt import interruptible
from hsae.kernels import by
from hsae.loop import Loop
from hsae.outcome import beaten_by, off_target, row_of, trained_rows
from hsae.progress import Training
from hsae.ranks import Ranks
from hsae.record import RESULT, Result
from hsae.reporting import Reports, reporting
from hsae.run import INDIFFERENT, Run, RunWriter
from hsae.start import centre_of
from hsae.store import HookRecord, Store
from hsae.store.rows import RowStream
from hsae.streaming import StreamRows, make_sample, open_stream
from hsae.synthetic import make_store
from hsae.trainconfig import TrainConfig
from hsae.truth import Truth

# Tokens that the geometric median is taken of.
MEDIAN_TOKENS = 16_384


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
    with grid(settings.latent_ranks) as ranks:
        # Only the first of several processes speaks and writes.
        return _train(settings, Training() if ranks.everyone.rank else progress or Training(), ranks)


def _train(settings: TrainConfig, progress: Training, ranks: Grid) -> Run:
    everyone = ranks.everyone
    with ExitStack() as stack:
        with everyone.first():
            if settings.batch_tokens < ranks.data.size:
                raise UserError(f"{ranks.data.size} processes cannot share --batch-tokens {settings.batch_tokens}")
            if settings.latents < ranks.latent.size:
                raise UserError(f"{ranks.latent.size} processes cannot share --latents {settings.latents}")
            store = _store(settings, progress)
            hook, record = store.hook(settings.hook)
            resolved = _resolved(settings, store, hook)
            folder = cache_root() / "runs" / (settings.name or f"{store.name}-{_identity(resolved, store)}")
            device = choose_device(settings.device)
            if (folder / RESULT).exists():
                return _finished(folder, store, settings, resolved, progress, everyone)
            scale = settings.normalise.scale(record)
            held_out = held_out_sequences(store, settings.held_out)
            rows = store.rows(hook, settings.data_seed, held_out)
            centres = _centres(settings, record, rows, scale, device)
            if settings.data == "stream":
                rows = open_stream(settings.stream, store, settings.data_seed, progress.say)
            steps = _steps(settings, store, rows)
            held = held_out_rows(store, hook, settings.held_out) * scale
            loop = Loop(settings, steps, centres, scale, held, ranks, progress.say)
            if not everyone.rank:
                stack.enter_context(alone(folder, "hsae train"))
            writer = RunWriter(folder, resolved, store.manifest.fingerprint)
            loop.restore(writer, store)
        _require_one_place(everyone, loop.step, folder)
        if isinstance(rows, StreamRows):
            rows.go_on(loop.place, everyone.apart())
        begun = f", going on from step {loop.step}" if loop.step else ""
        count = f"{steps:,} step{'' if steps == 1 else 's'}"
        many = f", {everyone.size} processes" if everyone.size > 1 else ""
        many += f" ({ranks.latent.size} to a dictionary)" if ranks.latent.size > 1 else ""
        progress.say(f"{folder}: {count} of {settings.batch_tokens:,} tokens on {device}{by(device)}{many}{begun}")
        _warn(settings, record, scale, steps, progress)
        stack.enter_context(_room_on_disk(folder))
        reports = stack.enter_context(reporting(_quiet(settings, everyone), folder, progress.say))
        if isinstance(rows, StreamRows):
            stack.callback(rows.close)
        _fit(loop, store, rows, steps, writer, reports, progress)
        trained = trained_rows(loop, rows) * scale
        if not ranks.data.rank:  # all who hold a part of the dictionary
            wholes = {i: x.sae(scale).joined() for i, x in enumerate(loop.learners) if i not in loop.diverged}
            truth = None if everyone.rank else Truth.of(store)
            table = tuple(row_of(loop, i, held, trained, truth, wholes.get(i)) for i in range(len(loop.learners)))
        with everyone.first():
            if everyone.rank:
                return Run(folder)
            reports.result(table, loop.step)
            off_target(settings, table, progress)
            known = (settings, store, hook, scale, held.to(device), table, held_out)
            beaten = beaten_by(*known) if settings.baselines else ()
            saes = {(loop.learners[i].name, loop.learners[i].seed): sae for i, sae in wholes.items()}
            if settings.normalise.fold:
                saes = {key: sae.folded() for key, sae in saes.items()}
            result = Result(
                version=1,
                store=resolved.get("store", store.name),
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
                rows=table,
                baselines=beaten,
            )
            return writer.finish(saes, result)


def _finished(
    folder: Path,
    store: Store,
    settings: TrainConfig,
    resolved: Mapping[str, Any],
    progress: Training,
    everyone: Ranks,
) -> Run:
    """The run that is there already."""
    run = Run(folder)
    if run.result.store_fingerprint != store.manifest.fingerprint:
        raise UserError(f"{folder}: was trained on another store; give another --name, or delete it")
    RunWriter(folder, resolved, store.manifest.fingerprint)
    progress.say(f"{folder} is already trained: nothing to do")
    with reporting(_quiet(settings, everyone), folder, progress.say) as reports:
        reports.result(run.result.rows, run.result.steps)
    return run


def _quiet(settings: TrainConfig, everyone: Ranks) -> TrainConfig:
    """The settings by which this process reports: only the first of several does."""
    return dataclasses.replace(settings, tensorboard=False, wandb="") if everyone.rank else settings


def _require_one_place(everyone: Ranks, step: int, folder: Path) -> None:
    """Refuse ranks that found different checkpoints."""
    if int(everyone.largest(torch.tensor(step))) != step:
        raise UserError(f"{folder}: not the folder that the first process sees; HSAE_CACHE must be one shared disk")


@contextmanager
def _room_on_disk(folder: Path) -> Iterator[None]:
    """A full disk as one line."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        line = "the disk is full; free some of it, and the same command goes on from the last checkpoint"
        raise UserError(f"{folder}: {line}") from None


def _fit(
    loop: Loop,
    store: Store,
    rows: RowStream | StreamRows,
    steps: int,
    writer: RunWriter,
    reports: Reports,
    progress: Training,
) -> None:
    """The training loop: from the loop's step to the last, with checkpoints on the way."""
    settings, everyone = loop.settings, loop.grid.everyone
    with interruptible() as interrupted, progress.bar(steps, loop.step, settings.batch_tokens) as bar:
        saved, told = time.monotonic(), set(loop.diverged)
        start = loop.step * settings.batch_tokens
        batches = on_device(rows, settings.batch_tokens, start, loop.device)
        while loop.step < steps and loop.active:
            records = loop.advance(next(batches))
            if records and not everyone.rank:
                writer.log(records)
                reports.log(records)
            progress.update(records)
            bar.advance(settings.batch_tokens)
            for i in loop.diverged.keys() - told:
                told.add(i)
                progress.say(f"{loop.learners[i].name} (seed {loop.learners[i].seed}): diverged {loop.diverged[i]}")
            stop = everyone.any(interrupted())
            due = loop.grid.latent.any(time.monotonic() - saved >= settings.checkpoint_seconds)
            if not loop.grid.data.rank and (stop or loop.step == steps or due):
                if isinstance(rows, StreamRows):
                    loop.place = rows.place((loop.step - 1) * settings.batch_tokens)
                taken = loop.snapshot(store)
                if not everyone.rank:
                    writer.checkpoint(*taken)
                saved = time.monotonic()
            if stop:
                everyone.any(False)  # a process that ends has torchrun end the others: not before it is saved
                raise Interrupted(f"stopped at step {loop.step} of {steps}; the same command goes on from there")


def _resolved(settings: TrainConfig, store: Store, hook: str) -> dict[str, Any]:
    if settings.data != "store":
        left_out = {"store", "synthetic", "stream"} - {settings.data}
        return {k: v for k, v in config.table(dataclasses.replace(settings, hook=hook)).items() if k not in left_out}
    table = config.table(dataclasses.replace(settings, store=store.address, hook=hook))
    # Runs made before `products` was a setting have none.
    default = () if settings.products != "ieee" else ("products",)
    return {key: value for key, value in table.items() if key not in ("data", "synthetic", "stream", *default)}


def _identity(resolved: Mapping[str, Any], store: Store) -> str:
    """What tells runs on a store apart: all settings that change the result, and the store's bytes."""
    settings = {key: value for key, value in resolved.items() if key not in ("name", "store", *INDIFFERENT)}
    return config.fingerprint([settings, store.manifest.fingerprint])


def _store(settings: TrainConfig, progress: Training) -> Store:
    """The store that is trained on; of a stream its sample."""
    if settings.data == "stream":
        return Store(make_sample(settings.stream, progress.console))
    return Store(make_store(settings.synthetic)) if settings.data == "synthetic" else Store.open(settings.store)


def _steps(settings: TrainConfig, store: Store, rows: RowStream | StreamRows) -> int:
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
    for name, setup in settings.setup.items():
        longest = max(setup.schedule.warmup, setup.schedule.sparsity_warmup)
        if longest >= steps:
            progress.say(f"note: {name} warms up over {longest} steps, and there are {steps}")
    variance = record.variance * scale**2
    if not 1 / 4 < variance / 5.6e-4 < 4 and settings.normalise.mode == "none":
        progress.say(
            f"note: variance per dimension is {variance:.2g}, the default settings are made for 5.6e-4; "
            "--normalise.mode variance scales to it"
        )


def _centres(
    settings: TrainConfig, record: HookRecord, rows: RowStream, scale: float, device: torch.device
) -> dict[str, Float[Tensor, "width"]]:
    """For each setup, what is taken from the scaled activations."""
    mean = torch.tensor(record.mean, dtype=torch.float32) * scale
    setups = settings.setup.items()
    sample = mean[None]
    if any(setup.centre == "median" for _, setup in setups):
        sample = next(iter(rows.batches(MEDIAN_TOKENS, start=0))) * scale
    return {name: centre_of(setup, mean, sample).to(device) for name, setup in setups}
