"""The job: train each part (or find it trained), measure, draw, write."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsae.canvas import available
from hsae.evidence import open_subject
from hsae.files import alone, cache_root, replacing
from hsae.paper import PaperConfig, drawing
from hsae.paper.document import document, lines_for_terminal
from hsae.paper.findings import Findings, Trained, ablation_part, init_part, table_part
from hsae.paper.latents import Latent, readable
from hsae.paper.measure import describe, held_out
from hsae.paper.plan import UNDERFLOW, Arm, ablation_arms, init_arms, part_settings, part_steps, table_arms
from hsae.paper.report import Source, markdown
from hsae.paper.tables import HEADS
from hsae.progress import Training, say
from hsae.record import RESULT
from hsae.store import Store
from hsae.trainconfig import Normalise
from hsae.training import train

if TYPE_CHECKING:
    from rich.console import Console


class FirstSeed(Training):
    """Shows a training by its first seed alone: a part has many learners."""

    def __init__(self, console: Console | None, seed: int) -> None:
        super().__init__(console)
        self._seed = seed

    def update(self, records: Iterable[Mapping[str, Any]]) -> None:
        super().update(record for record in records if record["seed"] == self._seed)

    def _words(self) -> str:
        return ""


def reproduce(settings: PaperConfig, console: Console | None) -> Path:
    """`hsae.paper.paper`."""
    available("paper")
    store = Store.open(settings.store)
    hook, record = store.hook(settings.hook)
    out = Path(settings.out) if settings.out else cache_root() / "paper" / f"{store.name}-{settings.scale}"
    with alone(out, "hsae paper"):
        scale = Normalise(mode="variance").scale(record)
        found = _found(settings, store, hook, scale, console)
        source = Source(
            store=store.name,
            fingerprint=store.manifest.fingerprint,
            tokens=store.manifest.tokens,
            model=str(store.manifest.model.get("name", "unknown")),
            architecture=str(store.manifest.model.get("architecture", "unknown architecture")),
            hook=hook,
            width=record.width,
            variance=record.variance,
            scale=scale,
        )
        _draw(out, found)
        _write(out / "report.json", json.dumps(document(settings, source, found), indent=1, default=list) + "\n")
        _write(out / "report.md", markdown(settings, source, found))
    report = out / "report.md"
    if console is not None:
        _show(console, found, source)
        say(console, f"report: {report}")
    return report


def _found(settings: PaperConfig, store: Store, hook: str, scale: float, console: Console | None) -> Findings:
    """Train and measure every part that was asked for."""
    width = store.manifest.hooks[hook].width
    steps = part_steps(settings, "ablation")
    arms = {"table": table_arms(width), "ablation": ablation_arms(width, steps), "init": init_arms(width)}
    # What latents mean is read from the table's SAEs.
    wanted = {"table" if part == "latents" else part for part in settings.parts}
    trained = {part: _trained(settings, part, arms[part], store, console) for part in arms if part in wanted}
    x = held_out(store, hook, settings.held_out, scale)
    return Findings(
        rows=describe(x),
        table=table_part(trained["table"], x) if "table" in settings.parts else None,
        ablation=ablation_part(trained["ablation"]) if "ablation" in trained else None,
        init=init_part(trained["init"], x) if "init" in trained else None,
        latents=_latents(trained["table"], store, hook, console) if "latents" in settings.parts else None,
    )


def _trained(settings: PaperConfig, part: str, arms: tuple[Arm, ...], store: Store, console: Console | None) -> Trained:
    """A part's run, trained if it is not yet."""
    train_settings = part_settings(settings, part, arms, store)
    if console is not None and not (cache_root() / "runs" / train_settings.name / RESULT).exists():
        seeds = len(train_settings.seeds)
        say(console, f"{part}: {len(arms)} setups, {seeds} seed{'s' * (seeds > 1)} each, in one reading of the store")
        if part == "ablation":
            say(console, "Some are meant to turn into NaN: which do, and when, is what is to be found.")
    return Trained.of(train(train_settings, FirstSeed(console, train_settings.seeds[0])), train_settings, arms)


def _latents(trained: Trained, store: Store, hook: str, console: Console | None) -> dict[str, tuple[Latent, ...]]:
    """Readable latents of both corner cases, the first seed that did not diverge."""
    rows = {row.setup: row for row in reversed(trained.run.result.rows) if not row.diverged}
    setups = [name for name in ("hebb-tied", "bp") if name in rows]
    run, on = str(trained.run.folder), str(store.folder)
    return {name: readable(open_subject(run, name, rows[name].seed, on, hook), console) for name in setups}


def _draw(out: Path, found: Findings) -> None:
    if found.table is not None:
        logged = found.table.trained.logged
        for name, panels in drawing.FIGURES.items():
            drawing.progress(out, name, logged, panels)
        drawing.diagnostics(out, "diagnostics", logged, "hebb-tied")
        if found.table.deciles:
            drawing.by_norm(out, "norms", found.table.deciles)
    if found.ablation is not None:
        trained = found.ablation.trained
        for name in ("losses", "sparsity"):
            title = "from PyTorch's default initialisation"
            drawing.progress(out, f"ablation-{name}", trained.logged, drawing.FIGURES[name], title)
        if found.ablation.falls:
            falling = [arm for arm in trained.arms if arm.name in found.ablation.falls and arm.base == "hebb-tied"]
            drawing.bias_falls(out, "bias", trained.logged, falling, UNDERFLOW)
    if found.init is not None:
        drawing.against_scale(out, "init", found.init.trained.arms, found.init.trained.lines)


def _write(path: Path, text: str) -> None:
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def _show(console: Console, found: Findings, source: Source) -> None:
    """The main table."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if found.table is None:
        return
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for i, heading in enumerate(("setup", "", *HEADS.values())):
        table.add_column(heading, justify="left" if i < 2 else "right", no_wrap=True)
    for line in lines_for_terminal(found.table):
        table.add_row(*map(Text, line))
    console.print(table)
    whose = "the paper's model" if source.is_the_papers else f"not the paper's model, but {source.model}"
    held = found.table.trained.run.result.held_out
    say(console, f"Ours: over {held:,} held-out tokens, {whose}.")
