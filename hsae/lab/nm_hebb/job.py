"""Which networks are trained at which scale, and the chapter that comes of it."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsae import config
from hsae.device import choose_device
from hsae.errors import UserError
from hsae.lab.chapter import Chapter, command_of
from hsae.lab.images import Images, load_images
from hsae.lab.nm_hebb import NMHebbConfig, report
from hsae.lab.nm_hebb.backbones import BACKBONES, HOOKED, hooked
from hsae.lab.nm_hebb.phases import Recipe
from hsae.lab.units import Unit, computed

if TYPE_CHECKING:
    from rich.console import Console

USED = (
    "nm_hebb/backbones",
    "nm_hebb/losses",
    "nm_hebb/measures",
    "images",
)  # their change makes trainings be done again
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
    same = {name: getattr(settings, name) for name in ("gate", "lambda_h", "lambda_c", "margin", "mu", "lr")}
    both = Recipe(reading=settings.reading, first=first, second=second, batch=batch, **same)
    alone = dataclasses.replace(both, first=first + second, second=0)

    def made(base: Recipe, name: str, *values: Any) -> dict[str, Recipe]:
        return {str(value): dataclasses.replace(base, **{name: value}) for value in values}

    parts = {
        "comparison": {
            "plain": dataclasses.replace(alone, reading="none"),
            "plain, phase 2": dataclasses.replace(both, reading="none"),
            "phase 1": alone,
            "phases 1, 2": both,
        },
        "sanity": made(alone, "reading", "none", "source", "centred", "local"),
        "gate": made(both, "gate", "monotone", "constant", "prior", "meta", "learned"),
        "margin": made(both, "margin", 0.5, 1.0, 2.0),
        "consolidation": {
            f"{'CE' if mu else 'no CE'}, {'pull' if weight else 'free'}": dataclasses.replace(
                both, mu=mu, lambda_c=weight
            )
            for mu in (settings.mu or 1.0, 0.0)
            for weight in (settings.lambda_c or 0.01, 0.0)
        },
    }
    return {part: parts[part] for part in settings.parts}


def checked(settings: NMHebbConfig) -> Images:
    """The images, after everything else that can be wrong was looked at.

    Raises:
        UserError: scikit-learn is not installed; the layer is not there; images are not there or too small.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise UserError("hsae lab nm-hebb needs scikit-learn, which is not installed: pip install hsae[lab]") from None
    for backbone in settings.backbones or SCALES[settings.scale][-1]:
        hooked(BACKBONES[backbone](1, 2), backbone, settings.layer)
    data = load_images(settings.images)
    if min(data.x_train.shape[2:]) < 8:
        raise UserError(
            f"{settings.images}: images of {data.x_train.shape[3]} x {data.x_train.shape[2]}; at least 8 x 8"
        )
    return data


def chapter(settings: NMHebbConfig, out: Path, console: Console | None = None) -> Chapter:
    """Do the trainings that are not done yet, draw the figures, and tell what was found.

    Args:
        settings: what to train, and on what.
        out: folder of the figures, and of what is computed.
        console: where to show progress; None shows nothing.

    Raises:
        UserError: images, layer or device are not there, or scikit-learn is not installed.
        KeyboardInterrupt: on Ctrl-C; what is trained is kept.
    """
    data, device = checked(settings), str(choose_device(settings.device))
    count, _, _, seeds, backbones = SCALES[settings.scale]
    seeds, parts = settings.seeds or seeds, recipes(settings)
    home = Path(__file__).parents[1]
    used = [data.x_train.numpy().tobytes(), *((home / f"{name}.py").read_bytes() for name in USED)]
    sources = hashlib.sha256(b"".join(used)).hexdigest()
    count = min(count or len(data.y_train), len(data.y_train))
    shared = {"images": settings.images, "count": count, "layer": settings.layer, "device": device, "sources": sources}
    drawn = recipes(dataclasses.replace(settings, parts=("comparison",)))["comparison"].values()
    units: dict[tuple[str, Recipe, int], Unit] = {}
    for backbone in settings.backbones or backbones:
        for recipe in dict.fromkeys(recipe for part in parts.values() for recipe in part.values()):
            for seed in seeds:
                own = {"recipe": config.table(recipe), "keep": seed == seeds[0] and recipe in drawn}
                name = f"{backbone} {config.fingerprint(recipe)} {seed}"
                arguments = {"backbone": backbone, "seed": seed, **own, **shared}
                units[backbone, recipe, seed] = Unit(name, "hsae.lab.nm_hebb.phases:train", arguments)
    workers = settings.workers or int(settings.scale == "tiny" or device != "cpu")
    done = computed(list(units.values()), out / "units", console, "nm-hebb", workers)
    body, numbers = [report.head(data, count, settings.epochs or SCALES[settings.scale][1], seeds)], {}
    for backbone in settings.backbones or backbones:
        runs = {
            part: {label: [done[units[backbone, r, seed].name] for seed in seeds] for label, r in arms.items()}
            for part, arms in parts.items()
        }
        body += report.of(backbone, settings.layer or HOOKED[backbone], runs, out)
        numbers[backbone] = {"claims": report.claims(runs), "runs": report.without_drawings(runs)}
    return Chapter("NM-Hebb", "\n\n".join(body), numbers, command_of("lab nm-hebb", settings, "parts"))
