"""One import: find the format, make the setup, measure, write the run aside, rename."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsae import config, registry
from hsae.baselines import baselines, training_rows
from hsae.errors import UserError
from hsae.export._files import whole_folder
from hsae.files import cache_root
from hsae.held_out import held_out_rows, held_out_sequences
from hsae.importing import ImportConfig
from hsae.importing._base import Foreign, Reader
from hsae.importing._setup import Made, make
from hsae.importing._store import Fit, fitting_store
from hsae.metrics import score
from hsae.plain import finite
from hsae.record import VERSION, Baseline, Result, Row
from hsae.run import Run, RunWriter

if TYPE_CHECKING:
    from rich.console import Console

PACKAGE = "hsae.importing"
# Tokens that are measured at once: it changes the memory, not the result.
BLOCK = 512


def bring(settings: ImportConfig, console: Console | None) -> Run:
    """What `hsae.importing.import_sae` does."""
    from hsae.inspect.terminal import run_table
    from hsae.progress import say

    if not settings.folder:
        raise UserError("name the folder of an SAE: hsae import DIR")
    folder, name = _find(Path(settings.folder))
    foreign = registry.find(PACKAGE, name, Reader)().read(folder)
    if settings.hook:
        foreign = dataclasses.replace(foreign, hook=settings.hook)
    made = make(foreign)
    target = cache_root() / "runs" / (settings.name or f"{name}-{_clean(folder.resolve().name)}")
    if not re.fullmatch(r"\w[\w.+-]*", target.name) or target.parent != cache_root() / "runs":
        raise UserError(f"--name {settings.name!r}: use letters, digits and . + - _")
    fit = fitting_store(settings, foreign)
    row, beaten, held = _table(settings, made, fit)
    result = _result(folder, foreign, made, fit, row, beaten, held)
    config.check(result, str(folder))  # what its files say of the model and the hook point is written down as it is
    with whole_folder(target) as aside:
        writer = RunWriter(aside, _train_table(settings, made, fit, target.name))
        writer.finish({(made.name, made.seed): made.sae}, result)
    run = Run(target)
    if console is not None:
        say(console, f"{target}: {run.result.origin}")
        for note in (*made.notes, *fit.notes):
            say(console, f"note: {note}")
        console.print(run_table(run))
        say(console, f"next: hsae inspect --run {run.name}")
    return run


def _find(folder: Path) -> tuple[Path, str]:
    """The folder that holds an SAE, this one or its only subfolder that does, and the format's name."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder" if not folder.exists() else f"{folder}: a file; name its folder")
    readers = {name: registry.find(PACKAGE, name, Reader) for name in registry.names(PACKAGE)}

    def format_of(place: Path) -> str:
        return next((n for n, r in readers.items() if all((place / file).is_file() for file in r.files)), "")

    if name := format_of(folder):
        return folder, name
    within = [place for place in sorted(folder.iterdir()) if place.is_dir() and format_of(place)]
    if len(within) == 1:
        return within[0], format_of(within[0])
    if within:
        names = ", ".join(place.name for place in within[:5])
        raise UserError(f"{folder}: holds several SAEs ({names}{', …' if len(within) > 5 else ''}); name one folder")
    known = "; ".join(f"{name}: {' and '.join(reader.files)}" for name, reader in readers.items())
    raise UserError(f"{folder}: no SAE there of a format that is read ({known})")


def _clean(name: str) -> str:
    """A folder's name as a part of a run's."""
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "sae"


def _table(settings: ImportConfig, made: Made, fit: Fit) -> tuple[Row, Sequence[Baseline], int]:
    """The SAE's line as `hsae train` measures it, what it must beat, and the tokens; blank without a store."""
    if fit.store is None:
        return Row(made.name, made.seed), (), 0
    store, sae = fit.store, made.sae
    out = held_out_sequences(store, settings.held_out)
    held = held_out_rows(store, fit.hook, settings.held_out)
    values = finite(dataclasses.asdict(score(sae, held, BLOCK)))
    row = Row(made.name, made.seed, **{f.name: values[f.name] for f in dataclasses.fields(Row) if f.name in values})
    if not settings.baselines or row.l0 is None:
        return row, (), len(held)
    blocks = training_rows(store, fit.hook, 1.0, out)
    rank = min(sae.width, max(1, round(row.l0)))
    return row, tuple(baselines(store, fit.hook, 1.0, held, sae.latents, [rank], blocks)), len(held)


def _train_table(settings: ImportConfig, made: Made, fit: Fit, name: str) -> dict[str, Any]:
    """The `[train]` table: what is known of the SAE in the words of `hsae train`."""
    return {
        **({} if fit.store is None else {"store": fit.store.name}),
        "hook": fit.hook,
        "setups": [made.name],
        "seeds": [made.seed],
        "latents": made.sae.latents,
        "held_out": settings.held_out,
        "name": name,
        "setup": {made.name: made.table},
    }


def _result(
    folder: Path, foreign: Foreign, made: Made, fit: Fit, row: Row, beaten: Sequence[Baseline], held: int
) -> Result:
    store = fit.store
    return Result(
        version=VERSION,
        store="unknown" if store is None else store.name,
        store_fingerprint="" if store is None else store.manifest.fingerprint,
        model=fit.model,
        hook=fit.hook,
        width=made.sae.width,
        latents=made.sae.latents,
        scale=1.0,
        folded=False,
        steps=0,
        tokens=0,
        held_out=held,
        dead_window=0,
        rows=(row,),
        baselines=tuple(beaten),
        origin=f"imported from {folder.resolve().name}, made by {foreign.made_by}",
    )
