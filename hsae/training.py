"""`hsae train`: the one training loop, for all setups and seeds in one reading of the store. Only it changes state."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hsae import config
from hsae.baselines import baselines, training_rows
from hsae.device import choose_device
from hsae.errors import UserError
from hsae.files import alone, cache_root
from hsae.graph import on_device
from hsae.held_out import held_out_rows, held_out_sequences
from hsae.interrupt import interruptible
from hsae.kernels import by
from hsae.loop import Loop
from hsae.metrics import score
from hsae.plain import finite
from hsae.progress import Training
from hsae.record import RESULT, Baseline, Result, Row
from hsae.reporting import Reports, reporting
from hsae.run import INDIFFERENT, Run, RunWriter
from hsae.start import centre_of
from hsae.store import HookRecord, Store
from hsae.store.rows import RowStream
from hsae.synthetic import make_store
from hsae.trainconfig import TrainConfig
from hsae.truth import Truth, recovery

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
    progress = progress or Training()
    store = Store(make_store(settings.synthetic)) if settings.data == "synthetic" else Store.open(settings.store)
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
        with reporting(settings, folder, progress.say) as reports:
            reports.result(run.result.rows, run.result.steps)
        return run
    scale = settings.normalise.scale(record)
    held_out = held_out_sequences(store, settings.held_out)
    rows = store.rows(hook, settings.data_seed, held_out)
    steps = _steps(settings, store, rows)
    held = held_out_rows(store, hook, settings.held_out) * scale
    loop = Loop(settings, steps, _centres(settings, record, rows, scale, device), scale, held)
    with alone(folder, "hsae train"):
        writer = RunWriter(folder, resolved)
        loop.restore(writer, store)
        begun = f", going on from step {loop.step}" if loop.step else ""
        count = f"{steps:,} step{'' if steps == 1 else 's'}"
        progress.say(f"{folder}: {count} of {settings.batch_tokens:,} tokens on {device}{by(device)}{begun}")
        _warn(settings, record, scale, steps, progress)
        with reporting(settings, folder, progress.say) as reports:
            _fit(loop, store, rows, steps, writer, reports, progress)
            seen = min(settings.held_out, loop.step * settings.batch_tokens)
            trained = next(iter(rows.batches(seen, start=0))) * scale
            truth = Truth.of(store)
            table = tuple(_row(loop, i, held, trained, truth) for i in range(len(loop.learners)))
            reports.result(table, loop.step)
        _off_target(settings, table, progress)
        beaten = (
            _baselines(settings, store, hook, scale, held.to(device), table, held_out) if settings.baselines else ()
        )
        saes = {(x.name, x.seed): x.sae(scale) for i, x in enumerate(loop.learners) if i not in loop.diverged}
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


def _fit(
    loop: Loop, store: Store, rows: RowStream, steps: int, writer: RunWriter, reports: Reports, progress: Training
) -> None:
    """The training loop: from the loop's step to the last, with checkpoints on the way."""
    settings = loop.settings
    with interruptible() as interrupted, progress.bar(steps, loop.step, settings.batch_tokens) as bar:
        saved, told = time.monotonic(), set(loop.diverged)
        start = loop.step * settings.batch_tokens
        batches = on_device(rows, settings.batch_tokens, start, loop.device)
        while loop.step < steps and loop.active:
            records = loop.advance(next(batches))
            if records:
                writer.log(records)
                reports.log(records)
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


def _row(
    loop: Loop,
    i: int,
    held: Float[Tensor, "token width"],
    trained: Float[Tensor, "_ width"],
    truth: Truth | None,
) -> Row:
    """A learner's line of the run's table, measured on held-out tokens and on as many trained ones, both scaled."""
    learner, seconds = loop.learners[i], loop.seconds[i]
    if i in loop.diverged:
        return Row(learner.name, learner.seed, diverged=loop.diverged[i])
    sae, device = learner.sae(1.0), loop.device
    values = finite(dataclasses.asdict(score(sae, held.to(device), learner.tokens())))
    before = finite(dataclasses.asdict(score(sae, trained.to(device), learner.tokens())))
    diagnostics = loop.diagnostics.get(i)
    told = {} if diagnostics is None else finite(dataclasses.asdict(diagnostics))
    aligned = loop.aligned(i)
    found = {}
    if truth is not None:
        random = torch.randn(sae.W_dec.shape, generator=torch.Generator().manual_seed(learner.seed))
        found = dataclasses.asdict(recovery(sae.W_dec, truth)) | {"mmcs_random": recovery(random, truth).mmcs}
    return Row(
        setup=learner.name,
        seed=learner.seed,
        dead=loop.dead(i),
        tokens_per_second=loop.step * loop.settings.batch_tokens / seconds if seconds else None,
        rule=_known(told) or None,
        alignment=aligned and {side: _known(each) for side, each in aligned.items()},
        **{f.name: values[f.name] for f in dataclasses.fields(Row) if f.name in values},
        **{name: found[name] for name in ("mmcs", "mmcs_random", "mcc", "found") if name in found},
        **{f"train_{name}": before[name] for name in ("mse", "evr_pooled", "l0")},
    )


def _known(values: Mapping[str, float | None]) -> dict[str, float]:
    return {key: value for key, value in values.items() if value is not None}


def _resolved(settings: TrainConfig, store: Store, hook: str) -> dict[str, Any]:
    named = str(store.folder) if store.folder.parent != cache_root() / "activations" else store.name
    if settings.data == "synthetic":
        return {k: v for k, v in config.table(dataclasses.replace(settings, hook=hook)).items() if k != "store"}
    table = config.table(dataclasses.replace(settings, store=named, hook=hook))
    # Runs made before `products` was a setting have none.
    default = () if settings.products != "ieee" else ("products",)
    return {key: value for key, value in table.items() if key not in ("data", "synthetic", *default)}


def _identity(resolved: Mapping[str, Any], store: Store) -> str:
    """What tells runs on a store apart: all settings that change the result, and the store's bytes."""
    settings = {key: value for key, value in resolved.items() if key not in ("name", "store", *INDIFFERENT)}
    return config.fingerprint([settings, store.manifest.fingerprint])


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


def _off_target(settings: TrainConfig, rows: Sequence[Row], progress: Training) -> None:
    """Say where steering has not brought L0 to its target."""
    for row in rows:
        target = settings.setup[row.setup].target_l0
        if target is not None and row.l0 is not None and abs(row.l0 / target - 1) > 0.05:
            progress.say(
                f"note: {row.setup} (seed {row.seed}): L0 is {row.l0:.1f} on held-out tokens, not {target:g}; "
                "more steps, or a lower learning rate, bring it closer"
            )


def _baselines(
    settings: TrainConfig,
    store: Store,
    hook: str,
    scale: float,
    held: Float[Tensor, "token width"],
    rows: Sequence[Row],
    held_out: int,
) -> tuple[Baseline, ...]:
    """What the run's SAEs must beat: the mean, PCA of every setup's L0, k-means with as many centroids as latents."""
    reached: dict[str, list[float]] = {}
    for row in rows:
        if row.l0 is not None:
            reached.setdefault(row.setup, []).append(row.l0)
    width = held.shape[1]
    ranks = sorted({min(width, max(1, round(statistics.fmean(l0)))) for l0 in reached.values()})
    blocks = training_rows(store, hook, scale, held_out)
    return tuple(baselines(store, hook, scale, held, settings.latents, ranks, blocks))
