"""One export: open what is named, refuse what cannot be, write aside, rename."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hsae import registry
from hsae.errors import UserError, choices
from hsae.export import ExportConfig
from hsae.export._base import Exporter, Subject
from hsae.export._files import whole_folder
from hsae.export._plain import Plain, plain
from hsae.export._provenance import is_trained_on, provenance
from hsae.files import cache_root
from hsae.record import Row
from hsae.run import Run
from hsae.store import Store

if TYPE_CHECKING:
    from rich.console import Console

PACKAGE = "hsae.export"


def write(settings: ExportConfig, console: Console | None) -> Path:
    """What `hsae.export.export` does."""
    from hsae.progress import say
    from hsae.terminal import Terminal

    exporter = _exporter(settings.to)
    run = Run.open(settings.run)
    row = run.whole(settings.setup, settings.seed)
    sae = run.sae(row.setup, row.seed)
    form = plain(sae)
    _require_takes(exporter, settings.to, form, run, row)
    store, missing = _store(settings, run)
    if store is None and exporter.needs_store:
        raise UserError(f"--to {settings.to} takes activations from the run's store: {missing}")
    hook, width = run.result.hook, run.result.width
    if store is not None:
        hook, record = store.hook(hook)
        if record.width != width:
            raise UserError(f"store {store.name}: {hook} is {record.width} wide, run {run.name} has SAEs for {width}")
    known = store if store is not None and is_trained_on(run, store) else None
    subject = Subject(run, row, sae.folded(), form, store, known, hook, provenance(run, row, form, known, hook))
    target = Path(settings.out or cache_root() / "exports" / f"{run.name}-{row.setup}-{row.seed}-{settings.to}")
    with whole_folder(target) as folder:
        module = exporter.write(subject, settings, folder, Terminal(stderr=True) if console is not None else None)
    if console is not None:
        what = f"{row.setup} (seed {row.seed}) of run {run.name}"
        say(console, f"{target}: {what}, as {form.activation} for {settings.to}")
        for note in (*form.notes, *_silence(run, store, missing, known)):
            say(console, f"note: {note}")
        say(console, f"next: {exporter.load.format(folder=target, module=target / module)}")
    return target


def _silence(run: Run, store: Store | None, missing: str, known: Store | None) -> tuple[str, ...]:
    """A line on why nothing is said of the training data, where nothing is."""
    if known is not None or run.result.origin:
        return ()
    other = "" if store is None else f"store {store.name} is not the one that run {run.name} was trained on"
    return (f"{other or missing}: nothing is said of the training data",)


def _exporter(name: str) -> Exporter:
    known = registry.names(PACKAGE)
    if not name:
        raise UserError(f"name a format with --to: {', '.join(known)}")
    if name not in known:
        raise UserError(f"no export format {name!r}; {choices(name, known)}")
    return registry.find(PACKAGE, name, Exporter)()


def _require_takes(exporter: Exporter, name: str, form: Plain, run: Run, row: Row) -> None:
    """Refuse an activation function that the format cannot say, and name formats that can."""
    if form.activation not in exporter.takes:
        kind = registry.name_of(run.setups[row.setup].sae)
        every = {other: registry.find(PACKAGE, other, Exporter) for other in registry.names(PACKAGE)}
        weights = {other: found for other, found in every.items() if not found.needs_store}
        can = ", ".join(other for other, found in weights.items() if form.activation in found.takes)
        takes = " and ".join(exporter.takes)
        raise UserError(
            f"run {run.name}: {row.setup} is a {kind} SAE, and {name} can say {takes} only; formats for it: {can}"
        )


def _store(settings: ExportConfig, run: Run) -> tuple[Store | None, str]:
    """The store, or None and why it is not there; one that the user names must be."""
    try:
        return Store.open(settings.on or run.result.store), ""
    except UserError as error:
        if settings.on:
            raise
        return None, f"run {run.name} was trained on a store that cannot be opened ({error}; --on names another)"
