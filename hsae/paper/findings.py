"""What each part of the reproduction found, as plain data: everything that the report says is made from this."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from hsae.paper.latents import Latent
from hsae.paper.measure import (
    Deciles,
    Fall,
    Line,
    Logs,
    Rows,
    Winner,
    deciles,
    fall,
    lines,
    logs,
    winner,
)
from hsae.paper.moments import Moment, nearest, passing
from hsae.paper.plan import Arm
from hsae.paper.published import METRICS, TABLE_1
from hsae.paper.statistics import mismatch
from hsae.run import Run
from hsae.start import initial_weights
from hsae.trainconfig import TrainConfig


@dataclass(frozen=True)
class Trained:
    """A part's training, read back."""

    run: Run
    settings: TrainConfig
    arms: tuple[Arm, ...]
    logged: Logs
    lines: dict[str, Line]

    @classmethod
    def of(cls, run: Run, settings: TrainConfig, arms: Sequence[Arm]) -> Trained:
        """Read a finished run."""
        logged = logs(run)
        return cls(run, settings, tuple(arms), logged, lines(run, logged))

    @property
    def steps(self) -> int:
        """Steps asked for: a run whose learners all diverged ends sooner."""
        return self.settings.steps or self.run.result.steps

    def by_seed(self) -> list[dict[str, dict[str, float | None]]]:
        """For each seed, each setup's metrics over held-out tokens."""
        found: dict[int, dict[str, dict[str, float | None]]] = {}
        for row in self.run.result.rows:
            found.setdefault(row.seed, {})[row.setup] = {m: _float(getattr(row, m)) for m in METRICS}
        return list(found.values())

    def means(self) -> dict[str, dict[str, float | None]]:
        """Each setup's metrics over held-out tokens, means over seeds."""
        return {name: {m: line.mean(m) for m in METRICS} for name, line in self.lines.items()}


@dataclass(frozen=True)
class TablePart:
    """Table 1: by setup the error by token norm (first seed), and where Hebb Tied's MSE passes the paper's."""

    trained: Trained
    deciles: dict[str, Deciles]
    passing: Moment | None


@dataclass(frozen=True)
class AblationPart:
    """The default initialisation, by setup how the lowest bias falls."""

    trained: Trained
    falls: dict[str, Fall]


@dataclass(frozen=True)
class Start:
    """An encoder before its first step, over held-out tokens: L0, the dictionary, and the mean norm of rows."""

    l0: float
    dictionary: int
    row_norm: float


@dataclass(frozen=True)
class InitPart:
    """The scale of the initial weights: how setups start, who wins at the end, and the distance from the paper.

    `nearest`: for BP Tied and Hebb Tied, the moment of any training of theirs that is most like the paper's line.
    """

    trained: Trained
    starts: dict[str, Start]
    winners: dict[str, Winner]
    deciles: dict[str, Deciles]
    distances: dict[str, float]
    nearest: dict[str, Moment]


@dataclass(frozen=True)
class Findings:
    """All that was asked for; a part that was not is None."""

    rows: Rows
    table: TablePart | None
    ablation: AblationPart | None
    init: InitPart | None
    latents: dict[str, tuple[Latent, ...]] | None


def _float(value: float | int | None) -> float | None:
    return None if value is None else float(value)


def table_part(trained: Trained, x: torch.Tensor) -> TablePart:
    """Measure the table's SAEs on held-out activations."""
    return TablePart(
        trained,
        _deciles(trained, [arm.name for arm in trained.arms], x),
        passing(trained.logged, "hebb-tied", "hebb-tied"),
    )


def ablation_part(trained: Trained) -> AblationPart:
    """Measure how biases fall."""
    falls = {arm.name: fall(trained.logged, arm.name) for arm in trained.arms}
    return AblationPart(trained, {name: found for name, found in falls.items() if found is not None})


def init_part(trained: Trained, x: torch.Tensor) -> InitPart:
    """Measure every start and every end on held-out activations."""
    hebbian = [arm.name for arm in trained.arms if arm.base == "hebb-tied"]
    winners = {name: winner(sae, x) for name in hebbian if (sae := _first(trained, name)) is not None}
    distances = {arm.name: _distance(trained.lines[arm.name], arm.base) for arm in trained.arms}
    of_base = {base: [arm.name for arm in trained.arms if arm.base == base] for base in ("bp-tied", "hebb-tied")}
    like = {base: nearest(trained.logged, names, base) for base, names in of_base.items()}
    return InitPart(
        trained,
        {arm.name: _start(trained, arm.name, x) for arm in trained.arms},
        winners,
        _deciles(trained, hebbian, x),
        {name: distance for name, distance in distances.items() if distance is not None},
        {base: moment for base, moment in like.items() if moment is not None},
    )


def _distance(line: Line, base: str) -> float | None:
    return mismatch({m: line.mean(m) for m in METRICS}, {m: TABLE_1[base].mean(m) for m in METRICS})


def _first(trained: Trained, setup: str):
    """The SAE of the first seed that did not diverge."""
    rows: Mapping[int, str | None] = {r.seed: r.diverged for r in trained.run.result.rows if r.setup == setup}
    seed = next((seed for seed, diverged in rows.items() if not diverged), None)
    return None if seed is None else trained.run.sae(setup, seed)


def _deciles(trained: Trained, setups: Sequence[str], x: torch.Tensor) -> dict[str, Deciles]:
    return {name: deciles(sae, x) for name in setups if (sae := _first(trained, name)) is not None}


@torch.inference_mode()
def _start(trained: Trained, name: str, x: torch.Tensor) -> Start:
    setup = trained.settings.setup[name]
    weights = initial_weights(setup, x.shape[1], trained.settings.latents, trained.settings.seeds[0])["encoder"]
    assert weights.b is not None
    seen = x - x.mean(0) if setup.centre == "mean" else x
    fired = torch.zeros(len(weights.W))
    for part in seen.split(1024):
        fired += (torch.addmm(weights.b, part, weights.W.T) > 0).float().sum(0)
    norm = weights.W.norm(dim=1).mean().item()
    return Start(fired.sum().item() / len(x), int((fired > 0).sum()), norm)
