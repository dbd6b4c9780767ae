"""Which trainings the experiments need, at each scale."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from hsae.lab.alignment import AlignmentConfig
from hsae.lab.images import load_images
from hsae.lab.units import Unit


@dataclass(frozen=True)
class Students:
    """Students that differ in decay, noise and seed alone: one for each combination, the seed changing fastest.

    Tasks: mlp, transformer: a random teacher of the same shape, squared error averaged over batch and outputs; images:
    an MLP with cross-entropy. The rule `random` propagates the error of another, random network back in place of the
    student's own. Adam's decay joins the gradient, AdamW's does not.
    """

    gammas: tuple[float, ...]  # weight decay γ of all parameters
    sigmas: tuple[float, ...] = (0.0,)  # std of noise on all parameters, drawn at each step for its two passes alone
    seeds: tuple[int, ...] = (0,)
    task: Literal["mlp", "transformer", "images"] = "mlp"
    rule: Literal["backprop", "dfa", "random"] = "backprop"  # a transformer has no dfa
    optimiser: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.1
    activation: str = "tanh"
    batch: int = 256  # samples; a transformer's are tokens, 8 to a sequence
    epochs: int = 50
    window: int = 3  # epochs at the end over which alignment is averaged
    rows: int = 20_000  # training samples drawn for a teacher
    points: int = 0  # of the history, at steps that grow in proportion
    sizes: tuple[int, ...] = ()  # of batches on which to measure the final weights
    images: str = ""  # their file
    pool: int = 1  # images are averaged over squares of so many pixels
    pseudo_error_scale: float = 1.0  # of the random rule's error
    resample: bool = False  # whether the random rule's network is drawn anew at each step
    device: str = "cpu"


@dataclass(frozen=True)
class Plan:
    """What a scale stands for."""

    seeds: int  # of the rows of the paper's table
    few: int  # seeds of all else
    epochs: int  # of the sweep's MLPs, and of `batch`
    transformer: int  # epochs of the sweep's
    others: int  # epochs of `activations` and `phase`
    images: int  # epochs of `classification`
    rows: int  # samples to train on
    steps: int  # of linear regression
    every: int  # each how many-th noise and decay of the phase diagram is tried
    pool: int  # images of 16 or more pixels a side are averaged over squares of so many


PLANS = {
    "tiny": Plan(2, 1, 2, 1, 1, 1, 512, 100, 3, 2),
    "small": Plan(10, 3, 50, 15, 25, 50, 20_000, 4000, 1, 2),
    "full": Plan(10, 10, 50, 50, 50, 50, 20_000, 20_000, 1, 1),
}
Row = dict[str, Any]
ADAM: Row = {"optimiser": "adam", "lr": 1e-3}
ADAMW: Row = {"optimiser": "adamw", "lr": 1e-3}
SLOW: Row = {"lr": 0.01}
TRANSFORMER: Row = {"task": "transformer", "activation": "relu"}
SWEEP: dict[str, Row] = {
    "MLP, Adam": ADAM,
    "MLP, AdamW": ADAMW,
    "MLP, SGD": {},
    "MLP, DFA": {"rule": "dfa"},
    "MLP, DFA, η = .01": {"rule": "dfa"} | SLOW,
    "MLP, random network": {"rule": "random"},
    "MLP, random network, redrawn": {"rule": "random", "resample": True},
    "transformer, Adam": ADAM | TRANSFORMER,
    "transformer, AdamW": ADAMW | TRANSFORMER,
    "transformer, SGD": TRANSFORMER,
}
EXTRA = ("MLP, AdamW", "MLP, DFA, η = .01", "MLP, random network, redrawn", "transformer, AdamW")
"""rows that the paper's table does not have: with few seeds"""
ACTIVATIONS: dict[str, Row] = {name: {"activation": name} for name in ("tanh", "relu", "gelu", "sigmoid", "linear")}
ACTIVATIONS |= {f"{name}, η = .01": {"activation": name} | SLOW for name in ("tanh", "relu")}
CLASSIFICATION = {"SGD, η = .01": SLOW, "Adam, η = .001": ADAM}
SIZES = (1, 4, 16, 64, 256, 1024, 4096)
NOISES, DECAYS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1), (0.0, 5e-5, 1.5e-4, 5e-4, 1.5e-3, 5e-3, 1.5e-2, 5e-2)
LINEAR: Row = {"gammas": [i / 30 for i in range(13)], "sigmas": [i / 100 for i in range(11)], "inputs": 32}
CHECKED: dict[str, Row] = {
    "d = 32": {"gammas": [0.0, 0.05, 1.0], "sigmas": [0.0, 0.03, 0.1], "inputs": 32},
    "d = 16": {"gammas": [0.05, 1.0, 2.0], "sigmas": [0.0, 0.05], "inputs": 16, "outputs": 4},
}


def units(experiment: str, settings: AlignmentConfig) -> dict[str, Unit]:
    """The trainings of an experiment: `ROW @ γ`, or `ROW` where one computation has all γ.

    Raises:
        UserError: images that cannot be read.
    """
    plan, gammas = PLANS[settings.scale], settings.gammas
    base: Row = {"gammas": gammas, "batch": settings.batch, "rows": plan.rows, "device": settings.device}
    base |= {"seeds": tuple(range(plan.few)), "epochs": plan.others}
    rows: dict[str, Row] = {}
    linear: dict[str, Row] = {}
    if experiment == "theorems":
        linear = CHECKED
    if experiment == "sweep":
        for name, row in SWEEP.items():
            size = {"seeds": tuple(range(plan.few if name in EXTRA else plan.seeds))}
            size |= {"epochs": plan.transformer if row.get("task") else plan.epochs}
            scale = {"pseudo_error_scale": settings.pseudo_error_scale} if row.get("rule") == "random" else {}
            rows |= {f"{name} @ {gamma:g}": row | size | scale | {"gammas": (gamma,)} for gamma in gammas}
    if experiment == "activations":
        rows = {name: row | {"points": 60} for name, row in ACTIVATIONS.items()}
    if experiment == "batch":
        decayed = {"gammas": tuple(gamma for gamma in gammas if gamma > 0) or gammas}
        steps = plan.epochs / settings.batch  # over the batch: as many steps with each
        for n in (n for n in (16, 64, 1024) if n <= plan.rows):
            rows[str(n)] = decayed | {"batch": n, "epochs": max(1, int(n * steps)), "seeds": (0,)}
        fitting = tuple(n for n in SIZES if n <= plan.rows)
        rows[str(settings.batch)] = decayed | {"sizes": fitting, "epochs": plan.epochs}
    if experiment == "phase":
        linear = {"linear": LINEAR}
        noisy: Row = {"sigmas": NOISES[:: plan.every], "seeds": (0,)}
        rows = {f"{gamma:g}": noisy | {"gammas": (gamma,)} for gamma in DECAYS[:: plan.every]}
    if experiment == "classification":
        pool = plan.pool if load_images(settings.images).x_train.shape[-1] >= 16 else 1
        images: Row = {"task": "images", "images": settings.images, "pool": pool, "epochs": plan.images}
        rows = {f"{n} @ {g:g}": images | row | {"gammas": (g,)} for n, row in CLASSIFICATION.items() for g in gammas}
    calls = {name: ("students:train", asdict(Students(**base | row))) for name, row in rows.items()}
    calls |= {name: ("theory:descend", {"outputs": 1} | row | {"steps": plan.steps}) for name, row in linear.items()}
    return {name: Unit(f"{experiment}: {name}", f"hsae.lab.alignment.{f}", row) for name, (f, row) in calls.items()}
