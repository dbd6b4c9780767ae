"""The terminal's face of surgery on runs: what is looked at without an edit, and what an edit did."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.text import Text

from hsae.errors import UserError
from hsae.figures import NONE, figure, percent
from hsae.inspect.ink import Ink, keyword_line
from hsae.inspect.tables import open_table
from hsae.inspect.tokens import visible
from hsae.lab.surgery import SurgeryConfig
from hsae.lab.surgery.case import latents_of, named_case, open_case
from hsae.lab.surgery.certificate import Protocol, Verdict
from hsae.lab.surgery.latents import per_latent
from hsae.lab.surgery.outcome import changes, pooled
from hsae.lab.surgery.sae import DYNAMICS
from hsae.lab.surgery.show import came_back
from hsae.lab.surgery.surgeon import Surgeon
from hsae.lists import named
from hsae.plain import finite
from hsae.progress import say

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

METRICS = {"evr_pooled": "EVR, pooled", "evr": "EVR, mean", "mse": "MSE", "l0": "L0", "dead": "dead latents"}
STARTS, SHOWN = 200, 8
"""starts of a survey, and basins shown"""


def protocol_of(settings: SurgeryConfig) -> Protocol:
    """How to verify. On a run, `seed` is the SAE's, and the noise is always the same."""
    return Protocol(0, settings.trials, settings.threshold, settings.noise, settings.convention)


def verify(settings: SurgeryConfig, console: Console) -> None:
    """Print whether latents come back from noise. Raises as `runs.operate`, and so do the others here."""
    case, table = open_case(settings.run, settings.setup, settings.seed), open_table(("latent", True))
    if not (latents := latents_of(settings, case)):
        raise UserError("lab surgery: say which latents to verify: --latent 27,30-35")
    found: list[dict[str, Any]] = [{"latent": latent} for latent in latents]
    for dynamics in DYNAMICS:
        table.add_column(f"{dynamics}: back from noise")
        memory = case.memory(case.sae, dynamics=dynamics)
        for each in found:
            each[dynamics] = pooled(memory, case.sae.W_dec[[each["latent"]]], protocol_of(settings))
    for each in found:
        table.add_row(str(each["latent"]), *(came_back(each[dynamics]) for dynamics in DYNAMICS))
    if settings.json:
        as_json([{**each, **{d: asdict(each[d]) for d in DYNAMICS}} for each in found], console)
    else:
        console.print(Text(visible(case.words), style="bold"), table, sep="\n")


def survey(settings: SurgeryConfig, console: Console) -> None:
    """Print where data and random starts lead, and which latent is nearest to that."""
    case, found = open_case(settings.run, settings.setup, settings.seed), list[dict[str, Any]]()
    unit = torch.nn.functional.normalize(case.sae.W_dec, dim=1)
    parts: list[RenderableType] = [Text(visible(case.words), style="bold")]
    for dynamics in DYNAMICS:
        basins = Surgeon(case.memory(case.sae, dynamics=dynamics), protocol_of(settings)).survey(STARTS)
        table = open_table(("starts", True), ("energy", True), ("nearest latent", True), ("cosine", True))
        for pattern, population, energy in zip(basins.patterns, basins.population, basins.energy, strict=True):
            cosine, latent = (unit @ (pattern / pattern.norm())).max(0)
            near = {"latent": int(latent), "cosine": float(cosine)}
            found.append({"dynamics": dynamics, "population": population, "energy": energy, **near})
            if table.row_count < SHOWN:
                table.add_row(str(population), figure(energy), str(near["latent"]), f"{near['cosine']:.3f}")
        count = len(basins.population)
        more = f"; the {SHOWN} largest" if count > SHOWN else ""
        words = f"{STARTS} starts, {count} basin{'s' * (count != 1)}, {basins.empty} lead to nothing{more}"
        parts += [Text(f"{dynamics}: {words}"), table]
    if settings.json:
        as_json(found, console)
    else:
        console.print(*parts, sep="\n")


def diff(settings: SurgeryConfig, console: Console) -> None:
    """Print which latents of two SAEs differ, and by how much."""
    if not settings.to_run:
        raise UserError("lab surgery: say which run to compare with: --to-run RUN")
    one, other = open_case(settings.run, settings.setup, settings.seed), named_case(settings.to_run)
    old, new = per_latent(one.sae), per_latent(other.sae)
    if {n: t.shape for n, t in old.items()} != {n: t.shape for n, t in new.items()}:
        raise UserError(f"{one.words} and {other.words} have different tensors; `hsae compare` matches their latents")
    differ = torch.stack([(old[n] != new[n]).reshape(len(old[n]), -1).any(1) for n in old]).any(0)
    latents, found = differ.nonzero().flatten().tolist(), changes(one.sae, other.sae)
    if settings.json:
        as_json({"before": one.words, "after": other.words, "latents": latents, "tensors": found}, console)
        return
    console.print(Text(visible(f"{one.words} → {other.words}"), style="bold"))
    for line in _changes(found):
        console.print(line)
    console.print(f"different: {named(latents)}" if latents else "no latent differs")


def show(settings: SurgeryConfig, report: dict[str, Any], target: Path, console: Console) -> None:
    """Print what an edit did, or that it is there already."""
    if settings.json:
        as_json({"name": target.name, **report}, console)
        return
    parent, there = report["parent"], "is there already, " if report.get("there") else ""
    of = f"{parent['setup']}, seed {parent['seed']}, of run {parent['run']}"
    console.print(Text(visible(f"{target}: {there}{of}, with {report['words']}"), style="bold"))
    for part in _drawn(report, console):
        console.print(part)
    say(console, f"next: hsae compare {parent['run']}:{parent['setup']}:{parent['seed']} {target.name}")
    say(console, f"undo: hsae lab surgery undo --run {target.name}")


def as_json(document: Any, console: Console) -> None:
    """Print one JSON document."""
    console.file.write(json.dumps(finite(document), indent=1, allow_nan=False) + "\n")


def _drawn(report: dict[str, Any], console: Console) -> Iterator[RenderableType]:
    table = open_table(("", False), ("before", True), ("after", True), ("change", True))
    measured, loss, notes = report["metrics"], report["language_model"], []
    if measured:
        for key, words in METRICS.items():
            old, new = measured["before"][key], measured["after"][key]
            form = "{:,.0f}" if key == "dead" else "{:.5g}"
            table.add_row(words, form.format(old), form.format(new), f"{new - old:+,.2g}")
        notes.append(f"Over {measured['tokens']:,} held-out tokens, MSE in units of training.")
    if loss:
        change = f"{loss['after'] - loss['before']:+.2g}"
        table.add_row("cross-entropy, spliced in", f"{loss['before']:.5f}", f"{loss['after']:.5f}", change)
        notes.append(f"Cross-entropy in nats a token; {loss['clean']:.5f} without an SAE.")
    for each in report["verified"]:
        before, after = (Verdict(**each[when]) for when in ("before", "after"))
        count = f"{each['patterns']} " if each["what"] == "other latents" else ""
        change = f"{100 * (after.rate - before.rate):+.3g}%"
        table.add_row(f"{each['dynamics']}: {count}{each['what']}", came_back(before), came_back(after), change)
    noise = percent(report["protocol"]["noise"])
    notes.append(f"softmax, sphere: noisy starts ({noise} of the norm) that come back, by both readings as a memory.")
    yield table
    yield Text(" ".join(notes), style="dim")
    yield from _changes(report["changes"])
    for each in report["contexts"]:
        yield from _contexts(each, console)
    for note in report["notes"]:
        yield Text(visible(f"note: {note}"), style="yellow")


def _changes(found: dict[str, Any]) -> Iterator[Text]:
    for name, change in found.items():
        latents = f"{change['latents']:,} latent{'s' if change['latents'] > 1 else ''}"
        yield Text(f"{name}: changed in {latents}, rank {change['rank']}, ‖ΔW‖/‖W‖ {percent(change['norm'])}")


def _contexts(found: dict[str, Any], console: Console) -> Iterator[Text]:
    yield Text.assemble((f"\nTop contexts of {found['of']}", "bold"), (f"  fires on {percent(found['rate'])}", "dim"))
    near = ", ".join(f"{latent} ({cosine:.2f})" for latent, cosine in found["near"])
    yield Text(f"latents nearest to it: {near or NONE}", style="dim")
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
    newly = sum(c["newly"] for c in found["contexts"]) or "none"
    yield Text(
        f"Latent {found['latent']} there, before → after; behind the text the others that fire most there now. "
        f"Others that did not fire there before: {newly}.",
        style="dim",
    )
