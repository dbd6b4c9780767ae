"""Which networks are trained at which scale, and the chapter that comes of it."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hsae import config
from hsae.device import choose_device
from hsae.errors import UserError
from hsae.lab.chapter import Chapter, command_of
from hsae.lab.images import load_images
from hsae.lab.nm_hebb import NMHebbConfig, report
from hsae.lab.nm_hebb.backbones import BACKBONES, HOOKED, hooked
from hsae.lab.nm_hebb.phases import Recipe
from hsae.lab.units import Unit, computed

if TYPE_CHECKING:
    from rich.console import Console

# Their change makes trainings be done again.
USED = ("nm_hebb/backbones", "nm_hebb/losses", "nm_hebb/measures", "images")
# Training images (0: all), epochs of either phase, batch, seeds, networks.
SCALES: dict[str, tuple[int, tuple[int, ...], int, tuple[int, ...], tuple[str, ...]]] = {
    "tiny": (300, (2, 1), 64, (0,), ("small",)),
    "small": (8000, (8, 4), 128, (0, 1, 2), ("small",)),
    "full": (0, (100, 40), 128, (0, 1, 2), ("resnet18", "mobilenetv2")),
}


def recipes(settings: NMHebbConfig) -> dict[str, dict[str, Recipe]]:
    """How each network of each part is trained. All see as many images as both phases together do."""
    _, epochs, batch, _, _ = SCALES[settings.scale]
    first, second = settings.epochs or epochs
    same = {name: getattr(settings, name) for name in ("reading", "gate", "lambda_h", "lambda_c", "margin", "mu", "lr")}
    both = Recipe(first=first, second=second, batch=batch, **same)
    alone = replace(both, first=first + second, second=0)
    pulls = {"CE, pull": (1, 1), "CE, free": (1, 0), "no CE, pull": (0, 1), "no CE, free": (0, 0)}
    mu, weight = settings.mu or 1.0, settings.lambda_c or 0.01
    return {
        "comparison": {
            "plain": replace(alone, reading="none"),
            "plain, phase 2": replace(both, reading="none"),
            "phase 1": alone,
            "phases 1, 2": both,
        },
        "sanity": {reading: replace(alone, reading=reading) for reading in ("none", "source", "centred", "local")},
        "gate": {gate: replace(both, gate=gate) for gate in ("monotone", "constant", "prior", "meta", "learned")},
        "margin": {str(margin): replace(both, margin=margin) for margin in (0.5, 1.0, 2.0)},
        "consolidation": {k: replace(both, mu=mu * ce, lambda_c=weight * pull) for k, (ce, pull) in pulls.items()},
    }


def chapter(settings: NMHebbConfig, out: Path, console: Console | None = None) -> Chapter:
    """Do the trainings that are not done yet, draw the figures into `out`, and tell what was found.

    Raises:
        UserError: images, layer or device are not there, images are too small, or scikit-learn is not installed.
        KeyboardInterrupt: on Ctrl-C; what is trained is kept.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise UserError("hsae lab nm-hebb needs scikit-learn, which is not installed: pip install hsae[lab]")
    count, epochs, _, seeds, backbones = SCALES[settings.scale]
    seeds, backbones = settings.seeds or seeds, settings.backbones or backbones
    for backbone in backbones:
        hooked(BACKBONES[backbone](1, 2), backbone, settings.layer)
    data, device = load_images(settings.images), str(choose_device(settings.device))
    if min(data.x_train.shape[2:]) < 8:
        height, width = data.x_train.shape[2:]
        raise UserError(f"{settings.images}: images of {width} x {height}; at least 8 x 8")
    home, count = Path(__file__).parents[1], min(count or len(data.y_train), len(data.y_train))
    used = [data.x_train.numpy().tobytes(), *((home / f"{name}.py").read_bytes() for name in USED)]
    sources = hashlib.sha256(b"".join(used)).hexdigest()
    shared = {"images": settings.images, "count": count, "layer": settings.layer, "device": device, "sources": sources}
    plans = recipes(settings)
    drawn, plans = plans["comparison"].values(), {part: plans[part] for part in settings.parts}
    units: dict[tuple[str, Recipe, int], Unit] = {}
    for backbone in backbones:
        for recipe in dict.fromkeys(recipe for plan in plans.values() for recipe in plan.values()):
            for seed in seeds:
                own = {"recipe": config.table(recipe), "keep": seed == seeds[0] and recipe in drawn}
                name = f"{backbone} {config.fingerprint(recipe)} {seed}"
                arguments = {"backbone": backbone, "seed": seed, **own, **shared}
                units[backbone, recipe, seed] = Unit(name, "hsae.lab.nm_hebb.phases:train", arguments)
    workers = settings.workers or int(settings.scale == "tiny" or device != "cpu")
    done = computed(list(units.values()), out / "units", console, "nm-hebb", workers)
    body, numbers = [report.head(data, count, settings.epochs or epochs, seeds)], {}
    for backbone in backbones:
        runs: report.Runs = {
            part: {
                label: [done[units[backbone, recipe, seed].name] for seed in seeds] for label, recipe in plan.items()
            }
            for part, plan in plans.items()
        }
        body += report.of(backbone, settings.layer or HOOKED[backbone], runs, out)
        known = {part: {k: [*map(report.measures, v)] for k, v in arms.items()} for part, arms in runs.items()}
        numbers[backbone] = {"claims": report.claims(runs), "measures": known}
    return Chapter("NM-Hebb", "\n\n".join(body), numbers, command_of("lab nm-hebb", settings, "parts"))
