"""The chapter: what is missing is computed, then each experiment says what it came to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsae.device import choose_device
from hsae.lab.alignment import EXPERIMENTS, AlignmentConfig, saes
from hsae.lab.alignment.plan import PLANS, units
from hsae.lab.alignment.report import SECTIONS
from hsae.lab.chapter import Chapter, command_of
from hsae.lab.units import computed

if TYPE_CHECKING:
    from rich.console import Console


def chapter(settings: AlignmentConfig, out: Path, console: Console | None = None) -> Chapter:
    """Compute what is missing, draw, and say what was found.

    Raises:
        UserError: images or a store that cannot be read, a batch larger than the data, a device that is not there.
        KeyboardInterrupt: on Ctrl-C; what is computed is kept.
    """
    device = choose_device(settings.device)
    workers = settings.workers if device.type == "cpu" else 1
    here = replace(settings, device=str(device))
    planned = {name: units(name, here) for name in EXPERIMENTS if name in settings.experiments and name != "saes"}
    if "saes" in settings.experiments:
        planned["saes"] = saes.units(here, out)
    every = [unit for part in planned.values() for unit in part.values()]
    found = computed(every, out / "units", console, "alignment", workers)
    plan, (_, latents, batch, steps, seeds) = PLANS[settings.scale], saes.SCALES[settings.scale]
    introduction = f"""\
After arXiv 2505.18069. A linear layer h_b = W h_a learns from a signal g_n = -δ_n h_a,nᵀ for each sample n; Hebb's
direction is H_n = h_b,n h_a,nᵀ. Alignment is their cosine: A1 of the means over a batch, A2 the mean over samples.

At this scale: {plan.rows:,} samples of a teacher; the sweep with {plan.seeds} seeds, {plan.epochs} epochs of MLPs and
{plan.transformer} of transformers; all else with {plan.few} or fewer, {plan.others} epochs ({plan.images} on images).
SGD comes to rest in some 1/(ηγ) steps: where there were fewer, more epochs would mean more alignment. SAEs: {latents:,}
latents, {seeds} seeds, {steps:,} steps of {batch:,} tokens of {Path(settings.store).name or "the bundled model"}."""
    parts, numbers = [introduction], dict[str, Any]()
    for name, part in planned.items():
        text, numbers[name] = SECTIONS[name]({row: found[unit.name] for row, unit in part.items()}, out)
        parts.append(text)
    command = command_of("lab alignment", settings, "experiments")
    return Chapter("Emergent Hebbian alignment", "\n\n".join(parts), numbers, command)
