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
from hsae.lab.hybrid_lm.claims import SOURCE_BACKPROP, SOURCE_HYBRID, Runs, best, by_loss, claims, final, series
from hsae.lab.hybrid_lm.text import read
from hsae.lab.units import Unit, computed

if TYPE_CHECKING:
    from rich.console import Console

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
    tokenizer, here = settings.tokenizer or ("gpt2" if settings.scale == "full" else ""), Path(__file__).parent
    read(settings.text, tokenizer, int(SCALES[settings.model][settings.scale][0][4]))  # its mistakes come first
    text = {"path": settings.text, "tokenizer": tokenizer, "sha256": files.sha256(Path(settings.text or BUNDLED))}
    code = hashlib.sha256(b"".join((here / f"{name}.py").read_bytes() for name in USED)).hexdigest()
    shared = {"text": text, "device": str(choose_device(settings.device)), "code": code}

    def unit(name: str, kind: str, arm: Plasticity, seed: int) -> Unit:
        tables = zip((SIZE, RECIPE), SCALES[kind][settings.scale], strict=True)
        size, recipe = (dict(zip(*each, strict=True)) for each in tables)
        if settings.steps and kind == settings.model:
            recipe["steps"] = settings.steps
        own = {"kind": kind, "size": size, "arm": config.table(arm), "recipe": recipe, "seed": seed}
        return Unit(f"{name} {seed}", "hsae.lab.hybrid_lm.training:train", own | shared)

    made = [
        unit(name, settings.model, arm, seed)
        for name, arm in arms_of(settings).items()
        for seed in (settings.seeds if name in ORDERING else settings.seeds[:1])
    ]
    bdh = "bdh" in settings.parts and settings.model != "bdh"
    return [*made, unit("bdh", "bdh", BACKPROP, settings.seeds[0])] if bdh else made


def chapter(settings: HybridLMConfig, out: Path, console: Console | None = None) -> Chapter:
    """Do the trainings that are not done yet, draw the figures into `out`, and tell what was found.

    Raises:
        UserError: the text, the tokeniser or the device is not there, or the text is too short.
        KeyboardInterrupt: on Ctrl-C; what is trained is kept.
    """
    todo = units(settings)
    arguments = todo[0].arguments
    one = settings.scale == "tiny" or arguments["device"] != "cpu"
    done = computed(todo, out / "units", console, "hybrid-lm", settings.workers or int(one))
    runs: Runs = {}
    for unit in todo:
        name, seed = unit.name.split()
        runs.setdefault(name, {})[int(seed)] = done[unit.name]
    figures(runs, out)
    body = "\n\n".join(report.parts(runs, arguments, Path(settings.text).name or "bundled stories"))
    plain = dataclasses.replace(settings, own=Plasticity())
    flags = "".join(f" --own.{key.replace('_', '-')} {value}" for key, value in settings.own.changed().items())
    numbers = {"runs": runs, "claims": list(claims(runs)), "arguments": arguments["recipe"]}
    return Chapter("Hybrid language models", body, numbers, command_of("lab hybrid-lm", plain, "parts") + flags)


def figures(runs: Runs, out: Path) -> None:
    """Draw the losses beside the source's, the weights with their bound, and all arms side by side."""
    colour = dict(zip([*ORDERING, "constant-lr", "tied"], PALETTE, strict=False))
    with canvas(out, "hybrid-lm-curves", 2, 2, 5.2) as (_, panels):
        theirs, ours, weights, late = panels
        for name, losses in {"backprop": SOURCE_BACKPROP, "hybrid": SOURCE_HYBRID}.items():
            theirs.plot([500 * (i + 1) for i in range(len(losses))], losses, marker=".", color=colour[name], label=name)
        for name in (name for name in colour if name in runs):
            first, *others = runs[name].values()
            style: Any = {"color": colour[name], "label": name}
            if name in ORDERING:
                ours.plot(*series(first, "loss"), **style)
                weights.plot(*series(first, "mean"), **style)
                for run in others:
                    ours.plot(*series(run, "loss"), color=colour[name], alpha=0.5)
            if name not in ("backprop", "hebbian"):
                late.plot(*(each[1:] for each in series(first, "loss")), **style)
            if name == "hybrid":
                weights.plot(*series(first, "bound"), color="black", linestyle="--", label="bound")
        titles = (
            "validation loss: the source",
            "validation loss: here",
            "mean |W| of the layers",
            "validation loss: hybrid",
        )
        for panel, title in zip(panels, titles, strict=True):
            panel.set(title=title, xlabel="step")
            if panel is not ours:  # where there is no room, and its colours are those of the others
                panel.legend()
    arms = by_loss(runs)[::-1]
    with canvas(out, "hybrid-lm-arms", 1, 1, 0.6 + 0.17 * len(arms)) as (_, (panel,)):
        for i, (name, run) in enumerate(arms):
            panel.plot([best(run)[0], final(run)], [i, i], color=PALETTE[0], marker="|")
            panel.plot(final(run), i, "o", color=PALETTE[name not in ORDERING], markersize=4)
        panel.set(xlabel="validation loss, nats per token: the best (bar) and the last (dot)")
        panel.set_yticks(range(len(arms)), [name for name, _ in arms])
