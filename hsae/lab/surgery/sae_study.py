"""The chapter's part on SAEs: two trained on planted features, surveyed under both readings, and operated on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hsae.figures import percent
from hsae.intervals import wilson
from hsae.lab.surgery import SurgeryConfig
from hsae.lab.surgery.certificate import Certificate, Protocol
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
"""stock setups, and what is changed: where losers learn with the opposite sign, nearly all latents fall silent"""
STARTS = 200
EXPECTED: dict[Dynamics, int] = {"softmax": 12_000, "sphere": 6_000}
"""steps in which we measured no violation before"""


@dataclass(frozen=True)
class Size:
    """Of the study: what is trained, how many latents and edits are tried, the share of `EXPECTED` steps."""

    width: int
    features: int
    latents: int
    batch: int
    steps: int
    asked: int
    share: float


SIZES = {"tiny": Size(16, 32, 48, 128, 40, 4, 0.05), "small": Size(64, 256, 512, 1024, 100, 20, 1.0)}


def study(settings: SurgeryConfig) -> tuple[str, dict[str, Any]]:
    """Train, survey, inject, remove.

    Args:
        settings: the scale ("full" is as "small"), and how to verify.

    Returns:
        Markdown with headings `###`, and all numbers in it.
    """
    size, seed = SIZES["tiny" if settings.scale == "tiny" else "small"], settings.seed or 0
    protocol = Protocol(seed, settings.trials, settings.threshold, settings.noise, settings.convention)
    planted = {"width": size.width, "features": size.features, "tokens": 40 * size.batch, "seed": seed}
    x = torch.cat([block.flatten(0, 1) for block, _ in generate(SyntheticConfig(**planted, active=4.0, offset=0.0))])
    numbers: dict[str, Any] = {"surveys": [], "edits": []}
    for name in SETUPS:
        sae = _trained(name, size, x, seed)
        firings = (sae.encode(x[: 8 * size.batch]) > 0).float().sum(0)
        most = firings.argsort(descending=True, stable=True)[: size.asked]
        for dynamics in DYNAMICS:
            survey = _survey(SAEMemory(sae, dynamics, firings=firings, data=x), sae.W_dec[most], size, protocol)
            numbers["surveys"].append({"sae": name, "dynamics": dynamics, **survey})
        numbers["edits"] += [{"sae": name, **edit} for edit in _edits(sae, firings, x, sae.W_dec[most], protocol)]
    return _words(size, protocol, numbers), numbers


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


def _survey(memory: SAEMemory, rows: Float[Tensor, "row width"], size: Size, protocol: Protocol) -> dict[str, Any]:
    surgeon = Surgeon(memory, protocol)
    # In float64, so that what is counted is not rounding.
    double = with_tensors(memory.sae, {name: value.double() for name, value in memory.weights.items()})
    exact = SAEMemory(double, memory.dynamics, memory.temperature)
    states = memory.starts(100, torch.Generator().manual_seed(protocol.seed)).double()
    states = exact.size * torch.nn.functional.normalize(states, dim=1)
    steps, violations, energy = round(EXPECTED[memory.dynamics] * size.share), 0, exact.energy(states)
    for _ in range(steps // 100):
        states = exact.step(states)
        energy, last = exact.energy(states), energy
        violations += int((energy > last + 1e-12 * last.abs()).sum())
    found, back = surgeon.survey(STARTS), pooled(memory, rows, protocol)
    return {
        "rows": (back.rate, back.low, back.high),
        "basins": len(found.population),
        "largest": max(found.population, default=0) / STARTS,
        "violations": violations,
        "steps": steps,
    }


def _edits(
    sae: SAE, firings: Float[Tensor, "latent"], x: Tensor, rows: Float[Tensor, "row width"], protocol: Protocol
) -> Iterator[dict[str, Any]]:
    """Each edit by itself: random directions injected, rows in use removed; then the other rows are tried again."""
    drawn = torch.randn(2, *rows.shape, generator=torch.Generator().manual_seed(protocol.seed + 1))
    targets = {"inject": drawn[0], "inject, dense": drawn[1], "remove": rows, "remove, dense": rows}
    for edit, patterns in targets.items():
        surgeon = Surgeon(SAEMemory(sae, firings=firings, data=x, dense="dense" in edit), protocol)
        made, there, kept = list[Certificate](), 0, 0
        for i, pattern in enumerate(patterns):
            others = rows[torch.arange(len(rows)) != i]
            old = [surgeon.verify(other).hits for other in others]
            made.append((surgeon.inject if "inject" in edit else surgeon.remove)(pattern))
            there, kept = (
                there + sum(old),
                kept + sum(min(surgeon.verify(o).hits, h) for o, h in zip(others, old, strict=True)),
            )
            if not made[-1].restored:
                surgeon.undo()
        trials = len(patterns) * protocol.trials
        yield {
            "edit": edit,
            "before": wilson(sum(each.before.target.hits for each in made), trials),
            "after": wilson(sum(each.after.target.hits for each in made), trials),
            "others kept": wilson(kept, there) if there else None,
            "rank": sorted({each.rank for each in made}),
            "norm": sum(each.norm for each in made) / len(made),
        }


def _words(size: Size, protocol: Protocol, numbers: dict[str, Any]) -> str:
    surveys, edits = [], []
    for s in numbers["surveys"]:
        found = (_share(s["rows"]), f"{s['basins']} of {STARTS}", percent(s["largest"]))
        wrong = (f"{s['violations']} of {s['steps']:,}", f"0 of {EXPECTED[s['dynamics']]:,}")
        surveys.append((s["sae"], s["dynamics"], *found, *wrong))
    for e in numbers["edits"]:
        shares = (_share(e["before"]), _share(e["after"]), _share(e["others kept"]))
        edits.append((e["sae"], e["edit"], ", ".join(map(str, e["rank"])), percent(e["norm"]), *shares))
    bad = [f"{s['sae']} ({s['dynamics']})" for s in numbers["surveys"] if s["violations"]]
    proved = f"It does not hold for {', '.join(bad)}." if bad else "It holds in every step of every row below."
    parts = [
        "### SAEs as memories: survey",
        f"{size.latents} latents trained for {size.steps} steps of {size.batch} tokens with {size.features} planted "
        f"features in {size.width} dimensions; SoftHebb unsigned. Rows: noisy starts ({protocol.trials} each) at the "
        f"{size.asked} latents that fire most. Basins: where data and random starts lead, half of each; largest: the "
        "share of them that leads to one. The last columns: steps in which the energy went the wrong way, here and in "
        "an earlier measurement of ours. " + proved,
        table(
            ("SAE", "reading", "rows come back", "basins", "largest", "wrong steps", "measured before"),
            surveys,
            "..rrrrr",
        ),
        "### SAEs as memories: edits",
        f"Each of {size.asked} edits by itself, undone before the next; softmax reading. Inject: random directions, "
        "each over the least used latent. Remove: latents in use. Dense: W - (W t̂) ⊗ t̂. Others: noisy starts at "
        "the other latents in use that came back before, and still do.",
        table(("SAE", "edit", "rank", "‖ΔW‖/‖W‖", "before", "after", "others kept"), edits, "..rrrrr"),
    ]
    return "\n\n".join(parts)


def _share(share: tuple[float, float, float] | None) -> str:
    return "–" if share is None else f"{percent(share[0])} ({percent(max(share[1], 0))}–{percent(share[2])})"
