"""The chapter's part on SAEs: two trained on planted features, surveyed under both readings, and operated on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hsae.figures import percent
from hsae.interpret.score import wilson
from hsae.lab.surgery import SurgeryConfig
from hsae.lab.surgery.certificate import Protocol
from hsae.lab.surgery.latents import with_tensors
from hsae.lab.surgery.outcome import pooled
from hsae.lab.surgery.sae import DYNAMICS, Dynamics, SAEMemory
from hsae.lab.surgery.surgeon import Surgeon
from hsae.learner import Learner, Moment, accumulate
from hsae.sae import SAE
from hsae.setup import resolve
from hsae.sharing.markdown import table
from hsae.synthetic import SyntheticConfig, generate

SETUPS: dict[str, dict[str, Any]] = {"hebb-tied": {"encoder": {"rule": "softhebb", "signed": False}}, "bp-tied": {}}
"""stock setups, and what is changed: with losers that learn with the opposite sign, nearly all latents fall silent here
"""
STARTS = 200
EXPECTED: dict[Dynamics, int] = {"softmax": 12_000, "sphere": 6_000}
"""steps in which the specification saw no violation"""


@dataclass(frozen=True)
class Size:
    """Of the study: what is trained, and how much is asked of it."""

    width: int
    features: int
    latents: int
    batch: int
    steps: int
    asked: int


SIZES = {"tiny": Size(16, 32, 48, 128, 40, 4), "small": Size(64, 256, 512, 1024, 100, 20)}


def study(settings: SurgeryConfig) -> tuple[str, dict[str, Any]]:
    """Train, survey, inject, remove.

    Args:
        settings: the scale ("full" is as "small"), and how to verify.

    Returns:
        Markdown with headings `###`, and all numbers in it.
    """
    size = SIZES["tiny" if settings.scale == "tiny" else "small"]
    x = _data(size, settings.seed or 0)
    numbers: dict[str, Any] = {"surveys": [], "edits": []}
    for name in SETUPS:
        sae = _trained(name, size, x, settings.seed or 0)
        firings = (sae.encode(x[: 8 * size.batch]) > 0).float().sum(0)
        for dynamics in DYNAMICS:
            memory = SAEMemory(sae, dynamics, firings=firings, data=x)
            numbers["surveys"].append({"sae": name, "dynamics": dynamics, **_survey(settings, memory, firings, size)})
        numbers["edits"] += [{"sae": name, **edit} for edit in _edits(settings, sae, firings, x, size)]
    return _words(settings, size, numbers), numbers


def _data(size: Size, seed: int) -> Float[Tensor, "token width"]:
    shape = {"width": size.width, "features": size.features, "tokens": 40 * size.batch}
    config = SyntheticConfig(**shape, active=4.0, offset=0.0, seed=seed)
    return torch.cat([block.flatten(0, 1) for block, _ in generate(config)])


def _trained(name: str, size: Size, x: Float[Tensor, "token width"], seed: int) -> SAE:
    """A stock setup, trained on the tokens in their order, over and over."""
    learner = Learner(name, resolve([name], SETUPS, "study")[name], seed, size.latents, torch.zeros(size.width))
    batches = x.split(size.batch)
    for step in range(1, size.steps + 1):
        batch, moment, statistics = batches[step % len(batches)], Moment(step, size.steps), dict[str, Any]()
        learner.begin(batch, moment)
        for forward in learner.forwards(batch):
            accumulate(statistics, learner.statistics(forward))
        learner.update(statistics, moment)
    return learner.sae(1.0)


def _survey(settings: SurgeryConfig, memory: SAEMemory, firings: Tensor, size: Size) -> dict[str, Any]:
    surgeon = _surgeon(settings, memory)
    # In float64, so that what is counted is not rounding.
    double = with_tensors(memory.sae, {name: value.double() for name, value in memory.weights.items()})
    exact = SAEMemory(double, memory.dynamics, memory.temperature)
    steps = EXPECTED[memory.dynamics] // (1 if settings.scale != "tiny" else 20)
    states = memory.starts(100, torch.Generator().manual_seed(surgeon.protocol.seed)).double()
    states = exact.size * torch.nn.functional.normalize(states, dim=1)
    violations, energy = 0, exact.energy(states)
    for _ in range(steps // 100):
        states = exact.step(states)
        energy, last = exact.energy(states), energy
        violations += int((energy > last + 1e-12 * last.abs()).sum())
    found = surgeon.survey(STARTS)
    back = pooled(memory, memory.sae.W_dec[_most(firings, size.asked)], surgeon.protocol)
    return {
        "rows": wilson(back.hits, back.trials),
        "basins": len(found.population),
        "largest": max(found.population, default=0) / STARTS,
        "starts": STARTS,
        "violations": violations,
        "steps": steps,
    }


def _edits(settings: SurgeryConfig, sae: SAE, firings: Tensor, x: Tensor, size: Size) -> Iterable[dict[str, Any]]:
    """Each edit by itself: random directions injected, latents in use removed; then the other rows are tried again."""
    generator = torch.Generator().manual_seed((settings.seed or 0) + 1)
    used = _most(firings, size.asked)
    targets = {
        "inject": torch.randn(size.asked, sae.width, generator=generator),
        "inject, dense": torch.randn(size.asked, sae.width, generator=generator),
        "remove": sae.W_dec[used],
        "remove, dense": sae.W_dec[used],
    }
    for edit, patterns in targets.items():
        memory = SAEMemory(sae, firings=firings, data=x, dense="dense" in edit)
        surgeon, counts, kept, norm, ranks = _surgeon(settings, memory), [0, 0], [0, 0], 0.0, set[int]()
        for i, pattern in enumerate(patterns):
            others = sae.W_dec[used[torch.arange(len(used)) != i]]
            there = [surgeon.verify(other).hits for other in others]
            made = (surgeon.inject if "inject" in edit else surgeon.remove)(pattern)
            here = [surgeon.verify(other).hits for other in others]
            kept = [kept[0] + sum(min(pair) for pair in zip(there, here, strict=True)), kept[1] + sum(there)]
            counts = [counts[0] + made.before.target.hits, counts[1] + made.after.target.hits]
            norm, ranks = norm + made.norm / len(patterns), ranks | {made.rank}
            if not made.restored:
                surgeon.undo()
        trials = len(patterns) * surgeon.protocol.trials
        yield {
            "edit": edit,
            "before": wilson(counts[0], trials),
            "after": wilson(counts[1], trials),
            "trials": trials,
            "others kept": wilson(*kept) if kept[1] else None,
            "rank": sorted(ranks),
            "norm": norm,
        }


def _words(settings: SurgeryConfig, size: Size, numbers: dict[str, Any]) -> str:
    surveys = [
        (
            *(s["sae"], s["dynamics"], _share(s["rows"]), f"{s['basins']} of {s['starts']}", percent(s["largest"])),
            *(f"{s['violations']} of {s['steps']:,}", f"0 of {EXPECTED[s['dynamics']]:,}"),
        )
        for s in numbers["surveys"]
    ]
    edits = [
        (
            *(e["sae"], e["edit"], ", ".join(map(str, e["rank"])), percent(e["norm"])),
            *(_share(e["before"]), _share(e["after"]), _share(e["others kept"])),
        )
        for e in numbers["edits"]
    ]
    bad = [f"{s['sae']} ({s['dynamics']})" for s in numbers["surveys"] if s["violations"]]
    proved = f"It does not hold for {', '.join(bad)}." if bad else "It holds in every step of every row below."
    parts = [
        "### SAEs as memories: survey",
        f"{size.latents} latents trained for {size.steps} steps of {size.batch} tokens with {size.features} planted "
        f"features in {size.width} dimensions; SoftHebb unsigned. Rows: noisy starts ({settings.trials} each) at the "
        f"{size.asked} latents that fire most. Basins: where data and random starts lead, half of each; largest: the "
        "share of them that leads to one. The last columns: steps in which the energy went the wrong way, here and in "
        "the specification. " + proved,
        table(("SAE", "reading", "rows come back", "basins", "largest", "wrong steps", "expected"), surveys, "..rrrrr"),
        "### SAEs as memories: edits",
        f"Each of {size.asked} edits by itself, undone before the next; softmax reading. Inject: random directions, "
        "each over the least used latent. Remove: latents in use. Dense: W - (W t̂) ⊗ t̂. Others: noisy starts at "
        "the other latents in use that came back before, and still do.",
        table(("SAE", "edit", "rank", "‖ΔW‖/‖W‖", "before", "after", "others kept"), edits, "..rrrrr"),
    ]
    return "\n\n".join(parts)


def _surgeon(settings: SurgeryConfig, memory: SAEMemory) -> Surgeon:
    given = settings.trials, settings.threshold, settings.noise, settings.convention
    return Surgeon(memory, Protocol(settings.seed or 0, *given))


def _most(firings: Float[Tensor, "latent"], count: int) -> Tensor:
    """The latents that fire most."""
    return firings.argsort(descending=True, stable=True)[:count]


def _share(share: tuple[float, float, float] | None) -> str:
    return "–" if share is None else f"{percent(share[0])} ({percent(max(share[1], 0))}–{percent(share[2])})"
