"""The chapter: what is missing is computed, then each experiment says what it came to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsae.device import choose_device
from hsae.lab.alignment import EXPERIMENTS, AlignmentConfig
from hsae.lab.alignment.plan import PLANS, units
from hsae.lab.alignment.report import SECTIONS
from hsae.lab.alignment.saes import section as saes
from hsae.lab.chapter import Chapter, command_of
from hsae.lab.units import computed

if TYPE_CHECKING:
    from rich.console import Console

INTRODUCTION = """\
After arXiv 2505.18069. A linear layer h_b = W h_a learns from a signal g_n = -δ_n h_a,nᵀ for each sample n; Hebb's
direction is H_n = h_b,n h_a,nᵀ. Alignment is their cosine: A1 of the means over a batch, A2 the mean over samples.

At this scale: {0.rows:,} samples of a teacher; the sweep with {0.seeds} seeds, {0.epochs} epochs of MLPs and
{0.transformer} of transformers; all else with {0.few} seeds or fewer, {0.others} epochs ({0.images} on images). To come
to rest takes SGD some 1/(ηγ) steps: where there were fewer, more epochs would mean more alignment."""


def chapter(settings: AlignmentConfig, out: Path, console: Console | None = None) -> Chapter:
    """Compute what is missing, draw, and say what was found.

    Raises:
        UserError: images that cannot be read, a batch larger than the data, a device that is not there.
        KeyboardInterrupt: on Ctrl-C; what is computed is kept.
    """
    device = choose_device(settings.device)
    wanted = [name for name in EXPERIMENTS if name in settings.experiments]
    planned = {name: units(name, settings, str(device)) for name in wanted if name in SECTIONS}
    workers = settings.workers if device.type == "cpu" else 1
    every = [unit for part in planned.values() for unit in part.values()]
    found = computed(every, out / "units", console, "alignment", workers)
    parts, numbers = [INTRODUCTION.format(PLANS[settings.scale])], dict[str, Any]()
    for name in wanted:
        if name == "saes":
            text, numbers[name] = saes(settings, out, console)
        else:
            text, numbers[name] = SECTIONS[name]({row: found[unit.name] for row, unit in planned[name].items()}, out)
        parts.append(text)
    command = command_of("lab alignment", settings, "experiments")
    return Chapter("Emergent Hebbian alignment", "\n\n".join(parts), numbers, command)
