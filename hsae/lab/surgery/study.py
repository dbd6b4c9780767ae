"""The chapter on surgery: every claim of the source measured, beside the figures that the specification expects."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsae.canvas import PALETTE, canvas
from hsae.lab.chapter import Chapter, command_of
from hsae.lab.surgery import SurgeryConfig
from hsae.lab.surgery.experiments import WAYS, source
from hsae.lab.surgery.tables import FIGURES, LAYER, RULES, WIDTH, Size, hopfield, mean, transformer
from hsae.lab.units import Unit, computed

if TYPE_CHECKING:
    from rich.console import Console

TITLE = "Surgery: write, erase and move memories"
STRENGTHS = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0)
FACTORS = (1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0)
SIZES = {
    "tiny": Size(1, (64,), (2.0, 4.0), (0.1, 0.5), ("rome",), 1, 1),
    "small": Size(10, (64, 144, 256), FACTORS, STRENGTHS, RULES, 4, 8),
    "full": Size(50, (64, 144, 256), FACTORS, STRENGTHS, RULES, 4, 16),
}


def chapter(settings: SurgeryConfig, out: Path, console: Console | None) -> Chapter:
    """Compute what is missing, draw, and say it."""
    size, seed = SIZES[settings.scale], settings.seed or 0
    found = computed(_units(size, settings.scale, seed), out / "units", console, "surgery", settings.workers)
    _draw(out, size, found)
    body = "\n\n".join(
        (*hopfield(size, found), *transformer(size, found), found["saes"]["text"].replace("### ", "## "))
    )
    return Chapter(TITLE, body, found, command_of("lab surgery", settings))


def _units(size: Size, scale: str, seed: int) -> list[Unit]:
    seeds = list(range(seed, seed + size.seeds))
    asked: dict[str, tuple[str, dict[str, Any]]] = {
        "writing": ("writing", {"width": WIDTH, "strengths": list(size.strengths), "ways": list(WAYS), "seeds": seeds}),
        "energies": ("energies", {"width": WIDTH, "seeds": seeds}),
        "conventions": ("conventions", {"widths": list(size.widths[::2]), "seeds": seeds}),
        "operations": ("operations", {"width": WIDTH, "seeds": seeds}),
        "saes": ("saes", {"scale": scale, "seed": seed}),
    }
    for width in size.widths:
        strengths = [factor / math.sqrt(width) for factor in size.factors]
        twice = list(range(seed, seed + 2 * size.seeds))
        way = {"width": width, "strengths": strengths, "ways": ["at the target"], "seeds": twice}
        asked[f"threshold {width}"] = ("writing", way)
    for rule in size.rules:
        asked[rule] = ("rules", {"layer": LAYER, "rule": rule, "prompts": size.prompts, "protect": True})
    for kind in ("ov", "qk"):
        asked[kind] = ("heads", {"kind": kind, "layer": LAYER, "count": size.heads})
    code = source()
    return [
        Unit(name, f"hsae.lab.surgery.experiments:{function}", {**arguments, "code": code})
        for name, (function, arguments) in asked.items()
    ]


def _draw(out: Path, size: Size, found: Mapping[str, Any]) -> None:
    with canvas(out, FIGURES[0], 1, 2, 2.9) as (_, (left, right)):
        for colour, (way, got) in zip(PALETTE, found["writing"].items(), strict=False):
            for name, style in (("hit", "-"), ("kept", ":")):
                means = [mean(values) for values in got[name]]
                label = way.removeprefix("at the target, ") if name == "hit" else None
                left.plot(size.strengths, means, style, marker=".", color=colour, label=label)
        left.set(xscale="log", xlabel="strength ‖ΔW‖/‖W‖", ylabel="starts that come back", ylim=(-0.03, 1.03))
        left.set_title("solid: to the target; dotted: to the memories")
        left.legend(fontsize=7, loc="center left")
        for colour, width in zip(PALETTE, size.widths, strict=False):
            means = [mean(values) for values in found[f"threshold {width}"]["at the target"]["hit"]]
            right.plot(size.factors, means, marker=".", color=colour, label=f"d = {width}")
            right.axvline(math.sqrt(2 * math.log(width)), color=colour, linestyle=":", linewidth=1)
        right.set(xlabel="c = strength × √d", ylim=(-0.03, 1.03))
        right.set_title("dotted: the law √(2 ln d)")
        right.legend(fontsize=7)
    with canvas(out, FIGURES[1], 1, 2, 2.4) as (_, panels):
        for panel, key, name in zip(panels, ("course", "source_course"), ("right", "the source's"), strict=True):
            panel.plot(found["energies"][key], color=PALETTE[0])
            panel.set(xlabel="step")
            panel.set_title(f"energy, {name} sign")
