"""Which trainings the experiments need, at each scale."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from hsae.config import require
from hsae.lab.alignment import AlignmentConfig
from hsae.lab.images import load_images
from hsae.lab.units import Unit


@dataclass(frozen=True)
class Students:
    """Students that differ in decay, noise and seed alone: one for each combination, the seed changing fastest.

    Attributes:
        gammas: weight decay γ of all parameters.
        sigmas: standard deviation of noise on all parameters, drawn at each step for its two passes alone.
        task: mlp, transformer: a random teacher of the same shape, squared error averaged over batch and outputs;
            images: an MLP with cross-entropy.
        rule: random: the error of another, random network is propagated back in place of the student's own.
        optimiser: adam: decay joins the gradient; adamw: it is decoupled.
        batch: samples; a transformer's are tokens, 8 to a sequence.
        window: epochs at the end over which alignment is averaged.
        rows: training samples drawn for a teacher.
        points: of the history, at steps that grow in proportion.
        sizes: of batches on which to measure the final weights.
        images, pool: the images' file; they are averaged over squares of so many pixels.
        pseudo_error_scale, resample: of the random rule's error; whether its network is drawn anew at each step.
    """

    gammas: tuple[float, ...]
    sigmas: tuple[float, ...] = (0.0,)
    seeds: tuple[int, ...] = (0,)
    task: Literal["mlp", "transformer", "images"] = "mlp"
    rule: Literal["backprop", "dfa", "random"] = "backprop"
    optimiser: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.1
    activation: str = "tanh"
    batch: int = 256
    epochs: int = 50
    window: int = 3
    rows: int = 20_000
    points: int = 0
    sizes: tuple[int, ...] = ()
    images: str = ""
    pool: int = 1
    pseudo_error_scale: float = 1.0
    resample: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        require(min(*self.gammas, *self.sigmas) >= 0, "gammas and sigmas", "0 or above", (self.gammas, self.sigmas))
        require(self.rule != "dfa" or self.task != "transformer", "rule", "backprop or random for it", self.rule)


@dataclass(frozen=True)
class Plan:
    """What a scale stands for.

    Attributes:
        seeds, few: of the rows of the paper's table; of all else.
        epochs, transformer, others, images: of the sweep's MLPs and of `batch`; of the sweep's transformers; of
            `activations` and `phase`; of `classification`.
        rows: samples to train on.
        steps: of linear regression.
        every: each how many-th noise and decay of the phase diagram is tried.
        pool: images of 16 or more pixels a side are averaged over squares of so many.
    """

    seeds: int
    few: int
    epochs: int
    transformer: int
    others: int
    images: int
    rows: int
    steps: int
    every: int
    pool: int


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
CHECKED: tuple[Row, ...] = (
    {"gammas": [0.0, 0.05, 1.0], "sigmas": [0.0, 0.03, 0.1], "inputs": 32},
    {"gammas": [0.05, 1.0, 2.0], "sigmas": [0.0, 0.05], "inputs": 16, "outputs": 4},
)


def units(experiment: str, settings: AlignmentConfig, device: str) -> dict[str, Unit]:
    """The trainings of an experiment: `ROW @ γ`, or `ROW` where one computation has all γ.

    Raises:
        UserError: images that cannot be read.
    """
    plan, gammas = PLANS[settings.scale], settings.gammas
    base: Row = {"gammas": gammas, "batch": settings.batch, "rows": plan.rows, "device": device}
    base |= {"seeds": tuple(range(plan.few)), "epochs": plan.others}
    rows: dict[str, Row] = {}
    if experiment == "theorems":
        return {str(i): _linear(f"{experiment}: {i}", pair, plan) for i, pair in enumerate(CHECKED)}
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
        rows = {str(n): decayed | {"batch": n, "epochs": max(1, int(n * steps)), "seeds": (0,)} for n in (16, 64, 1024)}
        fitting = tuple(n for n in SIZES if n <= plan.rows)
        rows = {name: row for name, row in rows.items() if row["batch"] <= plan.rows}
        rows[str(settings.batch)] = decayed | {"sizes": fitting, "epochs": plan.epochs}
    if experiment == "phase":
        noisy: Row = {"sigmas": NOISES[:: plan.every], "seeds": (0,)}
        rows = {f"{gamma:g}": noisy | {"gammas": (gamma,)} for gamma in DECAYS[:: plan.every]}
    if experiment == "classification":
        pool = plan.pool if load_images(settings.images).x_train.shape[-1] >= 16 else 1
        images: Row = {"task": "images", "images": settings.images, "pool": pool, "epochs": plan.images}
        rows = {f"{n} @ {g:g}": images | row | {"gammas": (g,)} for n, row in CLASSIFICATION.items() for g in gammas}
    made = {name: _trained(f"{experiment}: {name}", base | row) for name, row in rows.items()}
    return made | ({"linear": _linear("phase: linear", LINEAR, plan)} if experiment == "phase" else {})


def _trained(name: str, arguments: Row) -> Unit:
    return Unit(name, "hsae.lab.alignment.students:train", asdict(Students(**arguments)))


def _linear(name: str, arguments: Row, plan: Plan) -> Unit:
    return Unit(name, "hsae.lab.alignment.theory:descend", {"outputs": 1} | arguments | {"steps": plan.steps})
