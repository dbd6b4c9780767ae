"""Numbers out of run folders and the store: the table's lines, curves over steps, errors by token norm, biases."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hsae.intervals import Estimate, estimate
from hsae.paper.plan import UNDERFLOW
from hsae.record import Row
from hsae.run import Run
from hsae.sae import SAE
from hsae.store import Store

BLOCK = 1024
"""tokens encoded at a time"""
LATE = 0.1
"""the share of a run's last logged lines that stands for its end on the training batches"""

Logs = dict[tuple[str, int], list[dict[str, Any]]]
"""the lines of `metrics.jsonl` by setup and seed, in order"""


@dataclass(frozen=True)
class Line:
    """One setup of a part over its seeds.

    Attributes:
        held_out: each metric over the held-out tokens.
        train: the same SAE over as many training tokens: mse, evr_pooled, l0.
        batch: over the last training batches as they were trained on, which is how the paper measures.
        diverged: for each seed that diverged, when and why.
    """

    setup: str
    seeds: tuple[int, ...]
    held_out: dict[str, Estimate | None]
    train: dict[str, Estimate | None]
    batch: dict[str, Estimate | None]
    tokens_per_second: float | None
    diverged: dict[int, str]

    def mean(self, metric: str, of: str = "held_out") -> float | None:
        """A metric's mean over seeds; None where nothing was measured."""
        found = getattr(self, of).get(metric)
        return None if found is None else found.mean


@dataclass(frozen=True)
class Curve:
    """A quantity over steps: mean and standard deviation over the seeds that have it there (0 for one seed)."""

    steps: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


MEASURED = ("mse", "evr", "evr_std", "evr_median", "evr_pooled", "l1", "l0", "dictionary")


def logs(run: Run) -> Logs:
    """A run's `metrics.jsonl`."""
    found: Logs = defaultdict(list)
    for record in run.metrics():
        found[record["setup"], record["seed"]].append(record)
    return dict(found)


def lines(run: Run, logged: Logs) -> dict[str, Line]:
    """The run's table over seeds, by setup."""
    rows: dict[str, list[Row]] = defaultdict(list)
    for row in run.result.rows:
        rows[row.setup].append(row)
    return {name: _line(name, of_setup, logged) for name, of_setup in rows.items()}


def _line(name: str, rows: list[Row], logged: Logs) -> Line:
    whole = [row for row in rows if not row.diverged]
    ends = [_late(logged.get((name, row.seed), [])) for row in whole]
    speed = estimate(row.tokens_per_second for row in whole)
    return Line(
        setup=name,
        seeds=tuple(row.seed for row in rows),
        held_out={m: estimate(getattr(row, m) for row in whole) for m in (*MEASURED, "dead")},
        train={m: estimate(getattr(row, f"train_{m}") for row in whole) for m in ("mse", "evr_pooled", "l0")},
        batch={m: estimate(end.get(m) for end in ends) for m in MEASURED},
        tokens_per_second=None if speed is None else speed.mean,
        diverged={row.seed: row.diverged for row in rows if row.diverged},
    )


def _late(records: list[dict[str, Any]]) -> dict[str, float]:
    """Means over the last logged lines."""
    last = records[-max(1, round(LATE * len(records))) :]
    values = {m: [r[m] for r in last if r.get(m) is not None] for m in MEASURED}
    return {m: sum(v) / len(v) for m, v in values.items() if v}


def curve(logged: Logs, setup: str, quantity: str) -> Curve | None:
    """A quantity of `metrics.jsonl` over steps; `rule.NAME` for a diagnostic. None where it was never logged."""
    at: dict[int, list[float]] = defaultdict(list)
    for (name, _), records in logged.items():
        if name == setup:
            for record in records:
                if (value := _value(record, quantity)) is not None:
                    at[record["step"]].append(value)
    if not at:
        return None
    found = {step: estimate(values) for step, values in sorted(at.items())}
    there = {step: s for step, s in found.items() if s is not None}
    return Curve(tuple(there), tuple(s.mean for s in there.values()), tuple(s.std or 0.0 for s in there.values()))


def _value(record: Mapping[str, Any], quantity: str) -> float | None:
    name = quantity.removeprefix("rule.")
    value = (record.get("rule") or {}).get(name) if name != quantity else record.get(name)
    return None if value is None else float(value)


@dataclass(frozen=True)
class Fall:
    """How a SoftHebb setup's lowest bias falls, the seeds' mean.

    Attributes:
        first, last: lowest bias at the first and the last logged step, `step`.
        slope: change a step over the second half of the lines.
        underflow: the step at which it passes the bias below which e^(temperature·b) is 0 in float32; None if never.
    """

    first: float
    last: float
    step: int
    slope: float
    underflow: float | None


def fall(logged: Logs, setup: str) -> Fall | None:
    """A setup's `Fall`; None where too little was logged."""
    found = curve(logged, setup, "rule.bias_lowest")
    if found is None or len(found.steps) < 2:
        return None
    steps, values = found.steps, found.mean
    middle = min((len(steps) - 1) // 2, len(steps) - 2)
    slope = (values[-1] - values[middle]) / (steps[-1] - steps[middle])
    underflow = steps[-1] + (UNDERFLOW - values[-1]) / slope if slope < 0 else None
    if values[-1] <= UNDERFLOW:
        passed = next(step for step, value in zip(steps, values, strict=True) if value <= UNDERFLOW)
        underflow = float(passed)
    return Fall(values[0], values[-1], steps[-1], slope, underflow)


@dataclass(frozen=True)
class Rows:
    """What the held-out activations are like, at the scale of training."""

    tokens: int
    median_norm: float
    mean_norm: float
    norm_of_mean: float
    heaviest: float
    top_share: float


def describe(x: Float[Tensor, "token width"]) -> Rows:
    """`heaviest`: the largest norm over the median one; `top_share`: what 1% of tokens hold of the squared norm."""
    norms = x.double().norm(dim=1)
    squared = norms.square().sort(descending=True).values
    top = max(1, len(x) // 100)
    return Rows(
        tokens=len(x),
        median_norm=norms.median().item(),
        mean_norm=norms.mean().item(),
        norm_of_mean=x.double().mean(0).norm().item(),
        heaviest=(norms.max() / norms.median()).item(),
        top_share=(squared[:top].sum() / squared.sum()).item(),
    )


@dataclass(frozen=True)
class Deciles:
    """An SAE's error by token norm, smallest norms first: ten parts of the held-out tokens.

    Attributes:
        norm: mean norm of each part.
        share: of the total squared error.
        evr: mean per-token EVR.
        top_norm: share of the squared error in the 1% of tokens with the largest norm.
        top_error: the same, with the largest error.
        below_mean: share of tokens that the mean activation reconstructs better.
    """

    norm: tuple[float, ...]
    share: tuple[float, ...]
    evr: tuple[float, ...]
    top_norm: float
    top_error: float
    below_mean: float


@torch.inference_mode()
def deciles(sae: SAE, x: Float[Tensor, "token width"]) -> Deciles:
    """An SAE's error by token norm.

    Args:
        sae: any; its own scale is set to 1, so `x` is at the scale of training.
        x: held-out activations.
    """
    sae = dataclasses.replace(sae, scale=1.0)
    error = torch.cat([(sae(part) - part).double().square().sum(1) for part in x.split(BLOCK)])
    spreads = (x.double() - x.double().mean(0)).square().sum(1)
    ratio, norm = 1 - error / spreads, x.double().norm(dim=1)
    order = norm.argsort(stable=True)
    total = error.sum().clamp(min=1e-300)
    parts = [part for part in order.tensor_split(10) if len(part)]
    top = max(1, len(x) // 100)
    return Deciles(
        norm=tuple(norm[part].mean().item() for part in parts),
        share=tuple((error[part].sum() / total).item() for part in parts),
        evr=tuple(ratio[part].mean().item() for part in parts),
        top_norm=(error[order[-top:]].sum() / total).item(),
        top_error=(error.topk(top).values.sum() / total).item(),
        below_mean=(ratio < 0).double().mean().item(),
    )


@dataclass(frozen=True)
class Winner:
    """Which latent has the highest drive, over held-out tokens.

    Attributes:
        share: of the tokens that the commonest winner wins.
        cosine: of its row with the mean activation.
        silent: share of tokens on which no latent fires at all.
    """

    share: float
    cosine: float
    silent: float


@torch.inference_mode()
def winner(sae: SAE, x: Float[Tensor, "token width"]) -> Winner:
    """Who wins. As in training, drives include the bias; `x` is at the scale of training."""
    drives = [torch.addmm(sae.b_enc, part, sae.W_enc.T).max(1) for part in x.split(BLOCK)]
    counts = torch.bincount(torch.cat([drive.indices for drive in drives]), minlength=sae.latents)
    silent = torch.cat([drive.values for drive in drives]) <= 0
    row = sae.W_enc[counts.argmax()]
    cosine = torch.nn.functional.cosine_similarity(row, x.mean(0), dim=0)
    return Winner(counts.max().item() / len(x), cosine.item(), silent.double().mean().item())


def held_out(store: Store, hook: str, tokens: int, scale: float) -> Float[Tensor, "token width"]:
    """The held-out activations as training measures on them, at its scale."""
    manifest = store.manifest
    first = manifest.sequences - -(-tokens // manifest.context)
    rows = torch.cat([chunk.activations[chunk.keep] for chunk in store.chunks(hook, 64, first)])
    return rows[:tokens] * scale
