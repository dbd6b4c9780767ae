"""The terminal's face of surgery on runs: what is looked at without an edit, and what an edit did."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from rich.text import Text

from hsae.errors import UserError, visible
from hsae.figures import figure, percent
from hsae.inspect.ink import Ink, keyword_line
from hsae.inspect.tables import open_table
from hsae.lab.surgery import SurgeryConfig
from hsae.lab.surgery.certificate import Verdict
from hsae.lab.surgery.edits import open_case, other_case, protocol_of
from hsae.lab.surgery.latents import per_latent
from hsae.lab.surgery.outcome import changes
from hsae.lab.surgery.sae import DYNAMICS
from hsae.lab.surgery.show import came_back
from hsae.lab.surgery.surgeon import Surgeon
from hsae.lists import named
from hsae.plain import finite

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

METRICS = {"evr_pooled": "EVR, pooled", "evr": "EVR, mean", "mse": "MSE", "l0": "L0", "dictionary": "latents that fire"}
STARTS, SHOWN = 200, 8
"""starts of a survey, and basins shown"""


def verify(settings: SurgeryConfig, console: Console) -> None:
    """Print whether latents come back from noise. Raises as `runs.operate`, and so do the others here."""
    case = open_case(settings.run, settings.setup, settings.seed)
    if not (latents := case.latents(settings.latent)):
        raise UserError("lab surgery: say which latents to verify: --latent 27,30-35")
    found, table = [], open_table(("latent", True), ("reading", False), ("back from noise", True))
    for latent in latents:
        for dynamics in DYNAMICS:
            surgeon = Surgeon(case.memory(case.sae, dynamics=dynamics), protocol_of(settings))
            verdict = surgeon.verify(case.sae.W_dec[latent])
            found.append({"latent": latent, "dynamics": dynamics, **asdict(verdict)})
            table.add_row(str(latent), dynamics, came_back(verdict))
    tell(settings, found, console, Text(visible(case.words), style="bold"), table)


def survey(settings: SurgeryConfig, console: Console) -> None:
    """Print where data and random starts lead, and which latent is nearest to that."""
    case, found = open_case(settings.run, settings.setup, settings.seed), list[dict[str, Any]]()
    unit = torch.nn.functional.normalize(case.sae.W_dec, dim=1)
    parts: list[RenderableType] = [Text(visible(case.words), style="bold")]
    for dynamics in DYNAMICS:
        basins = Surgeon(case.memory(case.sae, dynamics=dynamics), protocol_of(settings)).survey(STARTS)
        cosine, latent = (torch.nn.functional.normalize(basins.patterns, dim=1) @ unit.T).max(1)
        rows = list(zip(basins.population, basins.energy, latent.tolist(), cosine.tolist(), strict=True))
        found += [{"dynamics": dynamics, "population": p, "energy": e, "latent": i, "cosine": c} for p, e, i, c in rows]
        table = open_table(("starts", True), ("energy", True), ("nearest latent", True), ("cosine", True))
        for population, energy, near, closeness in rows[:SHOWN]:
            table.add_row(str(population), figure(energy), str(near), f"{closeness:.3f}")
        words = f"{dynamics}: {STARTS} starts, {len(rows)} basins, {basins.empty} lead to nothing; the largest"
        parts += [Text(words), table]
    tell(settings, found, console, *parts)


def diff(settings: SurgeryConfig, console: Console) -> None:
    """Print which latents of two SAEs differ, and by how much."""
    if not settings.to_run:
        raise UserError("lab surgery: say which run to compare with: --to-run RUN")
    one, other = open_case(settings.run, settings.setup, settings.seed), other_case(settings.to_run)
    old, new = per_latent(one.sae), per_latent(other.sae)
    if {n: t.shape for n, t in old.items()} != {n: t.shape for n, t in new.items()}:
        raise UserError(f"{one.words} and {other.words} have different tensors; `hsae compare` matches their latents")
    differ = torch.stack([(old[n] != new[n]).reshape(len(old[n]), -1).any(1) for n in old]).any(0)
    latents, found = differ.nonzero().flatten().tolist(), changes(one.sae, other.sae)
    document = {"before": one.words, "after": other.words, "latents": latents, "tensors": found}
    words = Text(f"different: {named(latents)}" if latents else "no latent differs")
    head = Text(visible(f"{one.words} → {other.words}"), style="bold")
    tell(settings, document, console, head, *_changes(found), words)


def tell(settings: SurgeryConfig, document: Any, console: Console, *parts: RenderableType) -> None:
    """Print one JSON document, or its parts for a reader."""
    if settings.json:
        console.file.write(json.dumps(finite(document), indent=1, allow_nan=False) + "\n")
    else:
        console.print(*parts, sep="\n")


def drawn(report: dict[str, Any], console: Console) -> Iterator[RenderableType]:
    """What an edit did, for a reader."""
    table = open_table(("", False), ("before", True), ("after", True), ("change", True))
    old, new, loss = report["metrics"]["before"], report["metrics"]["after"], report["language_model"]
    rows = [(words, old[key], new[key]) for key, words in METRICS.items()]
    said = "Over the held-out tokens, MSE in units of training. "
    if "missing" in loss:
        said += f"The language model's loss was not measured: {loss['missing']}. "
    else:
        rows.append(("cross-entropy, spliced in", loss["before"], loss["after"]))
        said += f"Cross-entropy in nats a token; {loss['clean']:.5f} without an SAE. "
    for words, before, after in rows:
        table.add_row(words, f"{before:.6g}", f"{after:.6g}", f"{after - before:+.2g}")
    for each in report["verified"]:
        before, after = Verdict(**each["before"]), Verdict(**each["after"])
        change = f"{100 * (after.rate - before.rate):+.3g}%"
        table.add_row(f"noisy: {each['what']}", came_back(before), came_back(after), change)
    said += f"noisy: starts {percent(report['protocol']['noise'])} of the norm away that come back, softmax reading."
    yield table
    yield Text(visible(said), style="dim")
    yield from _changes(report["changes"])
    for each in report["contexts"]:
        yield from _contexts(each, console)


def _changes(found: dict[str, Any]) -> Iterator[Text]:
    for name, change in found.items():
        latents = f"{change['latents']:,} latent{'s' if change['latents'] > 1 else ''}"
        yield Text(f"{name}: changed in {latents}, rank {change['rank']}, ‖ΔW‖/‖W‖ {percent(change['norm'])}")


def _contexts(found: dict[str, Any], console: Console) -> Iterator[Text]:
    yield Text.assemble((f"\nTop contexts of {found['of']}", "bold"), (f"  fires on {percent(found['rate'])}", "dim"))
    if not found["contexts"]:
        yield Text("It never fires on this store.")
        return
    most, room = max(max(c["activations"]) for c in found["contexts"]), console.width - 40
    for c in found["contexts"]:
        line = Text(f"{figure(c['before']):>6} → {figure(c['after']):<6}", no_wrap=True)
        strengths = [value / most for value in c["activations"]]
        context = keyword_line(c["text"], strengths, c["peak"], room // 2, room - room // 2, Ink.of(console))
        context.pad_right(room - context.cell_len)
        yield line.append_text(context).append("  " + ", ".join(map(str, c["others"])), "dim")
    yield Text(f"latent {found['latent']} there, before → after; the others that fire most there now", style="dim")
