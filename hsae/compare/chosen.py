"""Which SAEs to compare: the words of the command line to rows of runs, and whether they can be compared at all."""

from __future__ import annotations

import string
from dataclasses import dataclass
from pathlib import Path

from hsae.compare import CompareConfig
from hsae.errors import UserError, choices
from hsae.record import Row
from hsae.run import Run
from hsae.store import Store


@dataclass(frozen=True)
class Chosen:
    """An SAE to compare: a letter and a label for the reader, and where it is."""

    key: str
    label: str
    run: Run
    row: Row

    @property
    def flags(self) -> str:
        """What names it to `hsae inspect`."""
        from shlex import join

        name = str(self.run.folder) if self.run.folder.parent.name != "runs" else self.run.name
        return join(["--run", name, "--setup", self.row.setup, "--seed", str(self.row.seed)])


def choose(settings: CompareConfig) -> tuple[list[Chosen], list[str]]:
    """The SAEs that the settings name, each once, in their order; and a note for each that has no weights.

    Raises:
        UserError: a run, setup or seed is not there, fewer than two SAEs are left, or two are not of one hook point.
    """
    found: dict[tuple[Path, str, int], tuple[Run, Row]] = {}
    for word in settings.runs or ("",):
        run, rows = _named(word)
        found |= {(run.folder.resolve(), row.setup, row.seed): (run, row) for row in rows}
    every = list(found.values())
    for wanted, values, what in (
        (settings.setups, [row.setup for _, row in every], "setup"),
        (map(str, settings.seeds), [str(row.seed) for _, row in every], "seed"),
    ):
        for name in wanted:
            if name not in values:
                raise UserError(f"--{what}s: none of the runs has {what} {name!r}; {choices(name, {*values})}")
    kept = [
        (run, row)
        for run, row in every
        if (not settings.setups or row.setup in settings.setups) and (not settings.seeds or row.seed in settings.seeds)
    ]
    notes = [
        f"run {run.name}: {row.setup}, seed {row.seed}, diverged {row.diverged}" for run, row in kept if row.diverged
    ]
    whole = [(run, row) for run, row in kept if not row.diverged]
    if len(whole) < 2:
        only = "one SAE" if whole else "no SAE"
        raise UserError(f"hsae compare needs two SAEs, and this names {only} with weights; name another run")
    _same_place([run for run, _ in whole])
    labels = _labels(whole)
    return [Chosen(_key(i), label, *one) for i, (label, one) in enumerate(zip(labels, whole, strict=True))], notes


def open_store(settings: CompareConfig, chosen: list[Chosen]) -> tuple[Store, str, list[str]]:
    """The store to compare on, its hook point, and what a reader should know of it.

    Raises:
        UserError: it is not there, or its activations have another width.
    """
    first = chosen[0].run
    try:
        store = Store.open(settings.on or first.result.store)
    except UserError as error:
        if settings.on:
            raise
        raise UserError(
            f"run {first.name} was trained on a store that cannot be opened: {error}; --on names another"
        ) from None
    hook, record = store.hook(settings.hook or first.result.hook)
    if record.width != first.result.width:
        raise UserError(
            f"store {store.name}: {hook} is {record.width} wide, run {first.name} has SAEs for {first.result.width}"
        )
    notes = []
    known, here = first.result.model.get("fingerprint"), store.manifest.model.get("fingerprint")
    if known and here and known != here:
        notes.append(f"store {store.name} is of another model than the runs: what fires on it may mean nothing")
    if hook != first.result.hook:
        notes.append(f"{hook} is not the hook point that the SAEs were trained on ({first.result.hook})")
    if not settings.on:
        for run in {one.run.folder: one.run for one in chosen}.values():
            same = run.result.store == first.result.store
            if same and run.result.store_fingerprint != store.manifest.fingerprint:
                notes.append(f"store {store.name} has been made anew since run {run.name} was trained on it")
    return store, hook, notes


def _named(word: str) -> tuple[Run, list[Row]]:
    """A run and those of its rows that `RUN`, `RUN:SETUP` or `RUN:SETUP:SEED` names."""
    if Path(word).is_dir():  # a colon may be a part of its path
        run = Run.open(word)
        return run, list(run.result.rows)
    name, _, rest = word.partition(":")
    run = Run.open(name)
    if not rest:
        return run, list(run.result.rows)
    setup, _, seed = rest.partition(":")
    if not seed:
        run.row(setup)
        return run, [row for row in run.result.rows if row.setup == setup]
    if not seed.isdecimal():
        raise UserError(f"{word}: {seed!r} is no seed; name an SAE as RUN:SETUP:SEED")
    return run, [run.row(setup, int(seed))]


def _same_place(runs: list[Run]) -> None:
    """Refuse SAEs of different models, hook points or widths: their latents have nothing to do with each other."""
    first = runs[0]
    for run in runs[1:]:
        one, other = first.result, run.result
        prints = one.model.get("fingerprint"), other.model.get("fingerprint")
        off = ""
        if one.width != other.width:
            off = f"widths {one.width} and {other.width}"
        elif all(prints) and prints[0] != prints[1]:
            off = f"models {one.model.get('name', prints[0])} and {other.model.get('name', prints[1])}"
        elif one.hook != other.hook:
            off = f"hook points {one.hook} and {other.hook}"
        if off:
            raise UserError(f"runs {first.name} and {run.name} are of different {off}: their SAEs cannot be compared")


def _labels(chosen: list[tuple[Run, Row]]) -> list[str]:
    """RUN:SETUP:SEED without what all have in common."""
    folders = {run.folder.resolve(): run for run, _ in chosen}
    clear = len({run.name for run in folders.values()}) == len(folders)
    seeds = len({row.seed for _, row in chosen}) > 1
    labels = []
    for run, row in chosen:
        parts = [run.name if clear else str(run.folder)] if len(folders) > 1 else []
        labels.append(":".join([*parts, row.setup, *([str(row.seed)] if seeds else [])]))
    return labels


def _key(index: int) -> str:
    """A, B, …, Z, AA, AB, …"""
    more, last = divmod(index, 26)
    return (_key(more - 1) if more else "") + string.ascii_uppercase[last]
