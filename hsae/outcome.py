"""What a training came to: the lines of the run's table, and what they are held against."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hsae.baselines import baselines, training_rows
from hsae.loop import Loop
from hsae.metrics import score
from hsae.plain import finite
from hsae.progress import Training
from hsae.record import Baseline, Row
from hsae.sae import SAE
from hsae.store import Store
from hsae.store.rows import RowStream
from hsae.streaming import StreamRows
from hsae.trainconfig import TrainConfig
from hsae.truth import Truth, recovery


def row_of(
    loop: Loop,
    i: int,
    held: Float[Tensor, "token width"],
    trained: Float[Tensor, "_ width"],
    truth: Truth | None,
    whole: SAE | None,
) -> Row:
    """A learner's line of the run's table, measured on held-out tokens and on as many trained ones, both scaled.

    All who hold a part of its dictionary measure together; `whole` has all parts, for the truth.
    """
    learner, seconds = loop.learners[i], loop.seconds[i]
    if i in loop.diverged:
        return Row(learner.name, learner.seed, diverged=loop.diverged[i])
    sae, device = learner.sae(1.0), loop.device
    values = finite(dataclasses.asdict(score(sae, held.to(device), learner.tokens(loop.micro_batch))))
    before = finite(dataclasses.asdict(score(sae, trained.to(device), learner.tokens(loop.micro_batch))))
    diagnostics = loop.diagnostics.get(i)
    told = {} if diagnostics is None else finite(dataclasses.asdict(diagnostics))
    aligned = loop.aligned(i)
    found = {}
    if truth is not None and whole is not None:
        random = torch.randn(whole.W_dec.shape, generator=torch.Generator().manual_seed(learner.seed))
        found = dataclasses.asdict(recovery(whole.W_dec, truth)) | {"mmcs_random": recovery(random, truth).mmcs}
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


def trained_rows(loop: Loop, rows: RowStream | StreamRows) -> Float[Tensor, "_ width"]:
    """As many of the trained tokens as are held out, or all: the first ones, and of a stream some of the last."""
    tokens = loop.settings.batch_tokens
    if isinstance(rows, StreamRows):
        return rows.batch(tokens, (loop.step - 1) * tokens)[: loop.settings.held_out]
    return next(iter(rows.batches(min(loop.settings.held_out, loop.step * tokens), start=0)))


def _known(values: Mapping[str, float | None]) -> dict[str, float]:
    return {key: value for key, value in values.items() if value is not None}


def off_target(settings: TrainConfig, rows: Sequence[Row], progress: Training) -> None:
    """Say where steering has not brought L0 to its target."""
    for row in rows:
        target = settings.setup[row.setup].target_l0
        if target is not None and row.l0 is not None and abs(row.l0 / target - 1) > 0.05:
            progress.say(
                f"note: {row.setup} (seed {row.seed}): L0 is {row.l0:.1f} on held-out tokens, not {target:g}; "
                "more steps, or a lower learning rate, bring it closer"
            )


def beaten_by(
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
