"""Which trainings reproduce the paper, and how long each is at a scale. Every part is one `hsae train`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hsae import config
from hsae.paper import PaperConfig
from hsae.paper.published import SETUPS, TEMPERATURE, WIDTH
from hsae.setup import resolve
from hsae.store import Store
from hsae.trainconfig import Normalise, TrainConfig

# Standard deviations of the initial weights to sweep, at width 64: rows of norm .5 to 8.
SWEEP = (0.0625, 0.125, 0.18, 0.25, 0.35, 0.5, 1.0)
# What the table starts from: rows of norm 1 for backpropagation, of norm 2 for SoftHebb.
BACKPROP_STD, SOFTHEBB_STD = 0.125, 0.25
BIAS_LR, OFFICIAL_BIAS_LR = 0.1, 1.0
# e^(temperature·b) is 0 in float32 below this bias.
UNDERFLOW = -149 * math.log(2) / TEMPERATURE
POINTS = 100
"""lines that a training logs for each learner, about"""


@dataclass(frozen=True)
class Scale:
    """How long trainings are: the table's steps and tokens a step; the other parts' share of those steps, and seeds."""

    steps: int
    batch_tokens: int
    share: float
    ablation_seeds: int
    init_seeds: int


SCALES = {
    "small": Scale(1_000, 1_024, 0.4, 2, 1),
    "medium": Scale(4_000, 2_048, 0.5, 2, 1),
    "large": Scale(16_000, 4_096, 1.0, 2, 1),
    "full": Scale(62_500, 16_384, 1.0, 5, 2),
}


@dataclass(frozen=True)
class Arm:
    """One setup of a part.

    Attributes:
        name: of the setup in the run.
        base: the paper's setup that it varies.
        label: what it is, for the report.
        std: of the initial weights; None for PyTorch's default.
        table: its `[train.setup.NAME]`.
    """

    name: str
    base: str
    label: str
    std: float | None
    table: dict[str, Any]


def std_at(std: float, width: int) -> float:
    """The standard deviation that gives rows the norm they have with `std` at the paper's width."""
    return std * math.sqrt(WIDTH / width)


def table_arms(width: int) -> tuple[Arm, ...]:
    """Table 1's four setups."""
    stds = {name: std_at(SOFTHEBB_STD if name in SETUPS[2:] else BACKPROP_STD, width) for name in SETUPS}
    return tuple(Arm(name, name, f"init_std {stds[name]:.3g}", stds[name], {"init_std": stds[name]}) for name in SETUPS)


def ablation_arms(width: int, steps: int) -> tuple[Arm, ...]:
    """The setups from PyTorch's default initialisation; SoftHebb by both arithmetics of the bias, at several rates."""
    arms = [Arm(name, name, "backprop", None, {"init": "kaiming"}) for name in ("bp", "bp-tied")]
    rates = {"": BIAS_LR, "-rate-1": OFFICIAL_BIAS_LR, "-fast": fast_bias_lr(width, steps)}
    for suffix, rate in rates.items():
        for arithmetic in ("log", "official"):
            for base in ("bp-dec", "hebb-tied") if not suffix else ("hebb-tied",):
                name = base + ("-official" if arithmetic == "official" else "") + suffix
                label = f"bias by {arithmetic} arithmetic, bias_lr {rate:.3g}"
                rule = {"rule": "softhebb", "bias_arithmetic": arithmetic, "bias_lr": rate}
                arms.append(Arm(name, base, label, None, _stock(base) | {"init": "kaiming", "encoder": rule}))
    std = std_at(SOFTHEBB_STD, width)
    rule = {"rule": "softhebb", "bias_arithmetic": "official", "bias_init": "paper_literal"}
    literal = _stock("hebb-tied") | {"init_std": std, "encoder": rule}
    label = f"bias from τ/ln(τ/K), official arithmetic, init_std {std:.3g}"
    return (*arms, Arm("hebb-tied-official-literal", "hebb-tied", label, std, literal))


def fast_bias_lr(width: int, steps: int) -> float:
    """The bias rate under which, from PyTorch's default, the lowest bias is due to underflow half-way through."""
    bound, norm = width**-0.5, 3**-0.5
    fall = -UNDERFLOW - bound
    return float(f"{fall / (steps / 2) / (1e-2 * abs(norm - 1) ** 0.2 / TEMPERATURE):.2g}")


def init_arms(width: int) -> tuple[Arm, ...]:
    """Both tied setups from initial weights of several scales, and SoftHebb's without the mean or without its bias."""
    arms = []
    for base in ("bp-tied", "hebb-tied"):
        for value in SWEEP:
            std = std_at(value, width)
            arms.append(Arm(_named(base, value), base, f"init_std {std:.3g}", std, _stock(base) | {"init_std": std}))
    changes: list[tuple[str, str, float, dict[str, Any]]] = [
        ("mean", "mean removed", 0.125, {"centre": "mean"}),
        ("mean", "mean removed", 0.25, {"centre": "mean"}),
        ("no-bias", "no bias (prior = false)", 0.125, {"encoder": {"rule": "softhebb", "prior": False}}),
        ("literal", "bias from τ/ln(τ/K)", 0.25, {"encoder": {"rule": "softhebb", "bias_init": "paper_literal"}}),
    ]
    for suffix, said, value, change in changes:
        std = std_at(value, width)
        table = _stock("hebb-tied") | {"init_std": std} | change
        label = f"init_std {std:.3g}, {said}"
        arms.append(Arm(_named(f"hebb-tied-{suffix}", value), "hebb-tied", label, std, table))
    return tuple(arms)


def _named(base: str, std: float) -> str:
    return f"{base}-{round(std * 10_000):05d}"


def _stock(base: str) -> dict[str, Any]:
    """A paper setup's table, for setups of other names."""
    return {
        "bp-tied": {"tied": True, "encoder": "backprop"},
        "bp-dec": {"encoder": "softhebb", "decoder": "backprop"},
        "hebb-tied": {"tied": True, "encoder": "softhebb"},
    }[base]


def part_settings(settings: PaperConfig, part: str, arms: Iterable[Arm], store: Store) -> TrainConfig:
    """The training of one part."""
    arms = tuple(arms)
    scale = SCALES[settings.scale]
    seeds = {"table": len(settings.seeds), "ablation": scale.ablation_seeds, "init": scale.init_seeds}[part]
    steps = part_steps(settings, part)
    names = [arm.name for arm in arms]
    train = TrainConfig(
        store=settings.store and str(store.folder),
        hook=settings.hook,
        setups=tuple(names),
        setup=resolve(names, {arm.name: arm.table for arm in arms}, "paper"),
        seeds=settings.seeds[:seeds],
        latents=settings.latents,
        batch_tokens=settings.batch_tokens or scale.batch_tokens,
        steps=steps,
        normalise=Normalise(mode="variance"),
        held_out=settings.held_out,
        log_every=max(1, steps // POINTS),
        device=settings.device,
    )
    known = {k: v for k, v in config.table(train).items() if k not in ("store", "device", "log_every")}
    mark = config.fingerprint([known, store.manifest.fingerprint], 6)
    return dataclasses.replace(train, name=f"paper-{store.name}-{settings.scale}-{part}-{mark}")


def part_steps(settings: PaperConfig, part: str) -> int:
    """How many steps a part is trained for."""
    scale = SCALES[settings.scale]
    steps = settings.steps or scale.steps
    return steps if part == "table" else max(2, round(steps * scale.share))
