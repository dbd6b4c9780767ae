"""What is trained at which scale, and the chapter that comes of it."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsae import config, files
from hsae.canvas import PALETTE, canvas
from hsae.device import choose_device
from hsae.harvesting.text import BUNDLED
from hsae.lab.chapter import Chapter, command_of
from hsae.lab.hybrid_lm import HybridLMConfig, report
from hsae.lab.hybrid_lm.arms import ARMS, BACKPROP, ORDERING, PARTS, Plasticity
from hsae.lab.hybrid_lm.claims import SOURCE, Runs, claims
from hsae.lab.hybrid_lm.text import read
from hsae.lab.units import Unit, computed

if TYPE_CHECKING:
    from rich.console import Console

TRAIN = "hsae.lab.hybrid_lm.training:train"
USED = ("arms", "bdh", "model", "plasticity", "text")  # a change of these modules makes trainings be done again
# Width, heads, hidden units, layers, context, dropout; steps, rows, micro-batch, lr, decay, held-out rows, sample.
SIZE = ("width", "heads", "mlp", "layers", "context", "dropout")
RECIPE = ("steps", "rows", "micro", "lr", "decay", "held", "length")
SCALES: dict[str, dict[str, tuple[tuple[float, ...], tuple[float, ...]]]] = {
    "gpt": {
        "tiny": ((16, 2, 32, 1, 16, 0.0), (20, 8, 1, 3e-3, 0.01, 16, 12)),
        "small": ((64, 4, 128, 2, 64, 0.0), (3000, 16, 2, 5e-4, 0.01, 128, 240)),
        "full": ((512, 8, 1024, 6, 256, 0.1), (5000, 32, 4, 3e-4, 0.01, 400, 200)),
    },
    "bdh": {
        "tiny": ((16, 2, 32, 2, 16, 0.0), (20, 8, 1, 3e-3, 0.1, 16, 12)),
        "small": ((64, 4, 512, 3, 64, 0.0), (1000, 16, 2, 1e-3, 0.1, 128, 240)),
        "full": ((256, 4, 32768, 6, 256, 0.1), (3000, 8, 1, 1e-3, 0.1, 400, 200)),
    },
}


def arms_of(settings: HybridLMConfig) -> dict[str, Plasticity]:
    """The arms that the settings ask for; those of the ordering always."""
    wanted = dict(ORDERING)
    for part in settings.parts:
        wanted |= PARTS.get(part, {part: ARMS[part]} if part in ARMS else {})
    return wanted | ({"own": settings.own} if "own" in settings.parts else {})


def units(settings: HybridLMConfig) -> list[Unit]:
    """One training for each arm and seed: all seeds for the ordering, the first for what is compared with it."""
    path = Path(settings.text) if settings.text else BUNDLED
    tokenizer = settings.tokenizer or ("gpt2" if settings.scale == "full" else "")
    here = Path(__file__).parent
    code = hashlib.sha256(b"".join((here / f"{name}.py").read_bytes() for name in USED)).hexdigest()
    read(settings.text, tokenizer, int(SCALES[settings.model][settings.scale][0][4]))  # its mistakes come first
    shared = {
        "text": {"path": settings.text, "tokenizer": tokenizer, "sha256": files.sha256(path)},
        "device": str(choose_device(settings.device)),
        "code": code,
    }

    def unit(name: str, kind: str, arm: Plasticity, seed: int) -> Unit:
        size, recipe = (
            dict(zip(*each, strict=True)) for each in zip((SIZE, RECIPE), SCALES[kind][settings.scale], strict=True)
        )
        if settings.steps and kind == settings.model:
            recipe["steps"] = settings.steps
        arguments = {"kind": kind, "size": size, "arm": config.table(arm), "recipe": recipe, "seed": seed}
        return Unit(f"{name} {seed}", TRAIN, arguments | shared)

    made = []
    for name, arm in arms_of(settings).items():
        seeds = settings.seeds if name in ORDERING else settings.seeds[:1]
        made += [unit(name, settings.model, arm, seed) for seed in seeds]
    if "bdh" in settings.parts and settings.model != "bdh":
        made.append(unit("bdh", "bdh", BACKPROP, settings.seeds[0]))
    return made


def chapter(settings: HybridLMConfig, out: Path, console: Console | None = None) -> Chapter:
    """Do the trainings that are not done yet, draw the figures, and tell what was found.

    Args:
        settings: what to train, and on what.
        out: folder of the figures, and of what is computed.
        console: where to show progress; None shows nothing.

    Raises:
        UserError: the text, the tokeniser or the device is not there, or the text is too short.
        KeyboardInterrupt: on Ctrl-C; what is trained is kept.
    """
    todo = units(settings)
    one = settings.scale == "tiny" or todo[0].arguments["device"] != "cpu"
    done = computed(todo, out / "units", console, "hybrid-lm", settings.workers or int(one))
    runs: Runs = {}
    for unit in todo:
        name, seed = unit.name.split()
        runs.setdefault(name, {})[int(seed)] = done[unit.name]
    arguments = todo[0].arguments
    figures(runs, out)
    body = report.body(runs, arguments, "bundled stories" if not settings.text else Path(settings.text).name)
    plain = dataclasses.replace(settings, own=Plasticity())
    flags = "".join(f" --own.{key.replace('_', '-')} {value}" for key, value in settings.own.changed().items())
    numbers: dict[str, Any] = {"runs": runs, "claims": claims(runs), "arguments": arguments["recipe"]}
    return Chapter("Hybrid language models", body, numbers, command_of("lab hybrid-lm", plain, "parts") + flags)


def figures(runs: Runs, out: Path) -> None:
    """Draw the losses beside the source's, the weights with their bound, and all arms side by side."""
    colour = dict(zip(ORDERING, PALETTE, strict=False)) | {"constant-lr": PALETTE[3], "tied": PALETTE[4]}
    with canvas(out, "hybrid-lm-curves", 1, 2, 3.0) as (_, (theirs, ours)):
        for name, curve in SOURCE.items():
            theirs.plot(*zip(*curve, strict=True), color=colour[name], marker="o", markersize=3, label=name)
        for name in ORDERING:
            for i, run in enumerate(runs[name].values()):
                x, y = zip(*((p["step"], p["loss"]) for p in run["curve"]), strict=True)
                ours.plot(x, y, color=colour[name], alpha=1 if i == 0 else 0.5, label=name if i == 0 else None)
        theirs.set(title="the source", xlabel="step", ylabel="validation loss, nats per token")
        ours.set(title="here", xlabel="step")
        theirs.legend()
        ours.legend()
    with canvas(out, "hybrid-lm-drift", 1, 2, 3.0) as (_, (weights, losses)):
        shown = {name: next(iter(runs[name].values()))["curve"] for name in colour if name in runs}
        for name, curve in shown.items():
            steps, means, values = zip(*((p["step"], p["mean"], p["loss"]) for p in curve), strict=True)
            if name in ORDERING:
                weights.plot(steps, means, color=colour[name], label=name)
            if name not in ("backprop", "hebbian"):
                losses.plot(steps[1:], values[1:], color=colour[name], label=name)
        weights.plot(*zip(*((p["step"], p["bound"]) for p in shown["hybrid"]), strict=True), "k--", label="bound")
        weights.set(title="mean |W| of the layers", xlabel="step")
        losses.set(title="validation loss", xlabel="step")
        weights.legend()
        losses.legend()
    table = report.arms(runs)
    with canvas(out, "hybrid-lm-arms", 1, 1, 0.6 + 0.17 * len(table)) as (_, (panel,)):
        names = [row["name"] for row in table][::-1]
        for i, row in enumerate(table[::-1]):
            panel.plot([row["best"], row["final"]], [i, i], color=PALETTE[0], marker="|")
            panel.plot(row["final"], i, "o", color=PALETTE[0 if row["name"] in ORDERING else 1], markersize=4)
        panel.set(xlabel="validation loss, nats per token: the best (bar) and the last (dot)", yticks=range(len(names)))
        panel.set_yticklabels(names)
