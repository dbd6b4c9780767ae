"""The whole comparison as plain data: every SAE's metrics, the Pareto front, and every pair's matching."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from hsae import config, registry
from hsae.compare import CompareConfig
from hsae.compare.chosen import Chosen, choose, open_store
from hsae.compare.pair import Comparison, Side, compare_saes
from hsae.compare.sample import first_sequence, measure, rows_of
from hsae.errors import UserError, one_line
from hsae.record import CONFIG
from hsae.run import Run
from hsae.sae import SAE
from hsae.store import Store

Advance = Callable[[int], None]
"""told how many steps of the work are done since the last call"""


@dataclass(frozen=True)
class Figures:
    """One SAE's metrics (`hsae.metrics`), None where they are not known. `dead`: latents that never fire.

    `recovered`: the loss recovered against the mean ablation (`hsae evaluate`).
    """

    mse: float | None
    evr: float | None
    evr_pooled: float | None
    l1: float | None
    l0: float | None
    dictionary: int | None
    dead: int | None
    tokens_per_second: float | None
    recovered: float | None


@dataclass(frozen=True)
class Entry:
    """One SAE of the comparison.

    Attributes:
        key: the letter that stands for it; label: its name without what all have in common.
        select: what names it to `hsae compare`; inspect: the flags that name it to `hsae inspect`.
        encoder: the rule that trained its encoder; decoder: its decoder's, empty when tied; variant: the kind of SAE.
        front: no other SAE explains as much with fewer active latents, or more with as few (pooled EVR, L0).
    """

    key: str
    label: str
    run: str
    setup: str
    seed: int
    select: str
    inspect: str
    encoder: str
    decoder: str
    variant: str
    width: int
    latents: int
    figures: Figures
    front: bool


@dataclass(frozen=True)
class Report:
    """A comparison.

    Attributes:
        measured: the metrics were measured on `tokens` of the store, in its units; if not, they are the run's own,
            over `held_out` held-out tokens, in the units of training.
        tokens: the store's last tokens, on which latents are matched.
        pairs: every two SAEs, named by their labels. Empty with --no-match.
    """

    store: str
    hook: str
    measured: bool
    held_out: int
    tokens: int
    threshold: float
    entries: tuple[Entry, ...]
    pairs: tuple[Comparison, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Work:
    """A comparison about to be made. `place`: the store and its hook point, None where the runs' own metrics do."""

    settings: CompareConfig
    chosen: tuple[Chosen, ...]
    losses: Mapping[tuple[str, str, int], float | None]
    measured: bool
    place: tuple[Store, str] | None
    notes: tuple[str, ...]

    @property
    def steps(self) -> int:
        """How much there is to do: SAEs to measure, SAEs to encode with, pairs to match."""
        count, match = len(self.chosen), self.settings.match
        return count * (self.measured + match) + match * count * (count - 1) // 2

    def do(self, advance: Advance) -> Report:
        """Make it. `advance` is told of every step."""
        settings, result = self.settings, self.chosen[0].run.result
        losses = [self.losses.get((one.run.name, one.row.setup, one.row.seed)) for one in self.chosen]
        figures, pairs, tokens = list(map(_own, self.chosen, losses)), (), 0
        if self.place is not None:
            rows = rows_of(*self.place, settings.tokens)
            tokens, sides = len(rows), []
            for i, (one, recovered) in enumerate(zip(self.chosen, losses, strict=True)):
                sae = one.run.sae(one.row.setup, one.row.seed)
                if self.measured:
                    figures[i] = _common(one, sae, rows, recovered)
                    advance(1)
                if settings.match:
                    sides.append(Side.of(one.label, sae, rows))
                    advance(1)
            for a, b in itertools.combinations(sides, 2):
                pairs += (compare_saes(a, b, rows, settings.threshold),)
                advance(1)
        best = front([(of.l0, of.evr_pooled) for of in figures])
        return Report(
            store=self.place[0].name if self.place else result.store,
            hook=self.place[1] if self.place else result.hook,
            measured=self.measured,
            held_out=result.held_out,
            tokens=tokens,
            threshold=settings.threshold,
            entries=tuple(map(_entry, self.chosen, figures, best)),
            pairs=pairs,
            notes=self.notes,
        )


def prepare(settings: CompareConfig) -> Work:
    """Find all that the settings name.

    Raises:
        UserError: something is not there, or cannot be compared.
    """
    chosen, notes = choose(settings)
    losses = _losses(settings.losses)
    measured, why = _measured(settings, chosen)
    place, notes = None, notes + why
    if measured or settings.match:
        store, hook, more = open_store(settings, chosen)
        place, notes = (store, hook), notes + more
        if measured:
            notes += _trained_on(chosen, store, settings.tokens)
    if unused := losses.keys() - {(one.run.name, one.row.setup, one.row.seed) for one in chosen}:
        notes.append(f"--losses: {len(unused)} of the SAEs in there are not compared here")
    return Work(settings, tuple(chosen), losses, measured, place, tuple(notes))


def front(points: Sequence[tuple[float | None, float | None]]) -> list[bool]:
    """Which points (L0, worth) are on the Pareto front: none has as low an L0 and a higher worth, or the reverse."""

    def beaten(l0: float, worth: float) -> bool:
        return any(
            x <= l0 and y >= worth and (x < l0 or y > worth) for x, y in points if x is not None and y is not None
        )

    return [x is not None and y is not None and not beaten(x, y) for x, y in points]


def _own(one: Chosen, recovered: float | None) -> Figures:
    """What the run says."""
    names = ("mse", "evr", "evr_pooled", "l1", "l0", "dictionary", "dead", "tokens_per_second")
    return Figures(**{name: getattr(one.row, name) for name in names}, recovered=recovered)


def _common(one: Chosen, sae: SAE, rows: Float[Tensor, "token width"], recovered: float | None) -> Figures:
    """What is measured on the common tokens."""
    found = measure(sae, rows)
    names = ("mse", "evr", "evr_pooled", "l1", "l0", "dictionary")
    values = {name: getattr(found, name) for name in names}
    dead, speed = sae.latents - found.dictionary, one.row.tokens_per_second
    return Figures(**values, dead=dead, tokens_per_second=speed, recovered=recovered)


def _entry(one: Chosen, figures: Figures, on_front: bool) -> Entry:
    setup, row, result = one.run.setups[one.row.setup], one.row, one.run.result
    return Entry(
        key=one.key,
        label=one.label,
        run=one.run.name,
        setup=row.setup,
        seed=row.seed,
        select=f"{one.run.name}:{row.setup}:{row.seed}",
        inspect=one.flags,
        encoder=registry.name_of(setup.encoder),
        decoder="" if setup.decoder is None else registry.name_of(setup.decoder),
        variant=registry.name_of(setup.sae),
        width=result.width,
        latents=result.latents,
        figures=figures,
        front=on_front,
    )


def _measured(settings: CompareConfig, chosen: list[Chosen]) -> tuple[bool, list[str]]:
    """Whether the metrics must be measured on common tokens, and why, for the reader."""
    if settings.on:
        return True, []
    results = [one.run.result for one in chosen]
    first = results[0]
    if len({result.store_fingerprint for result in results}) > 1:
        names = ", ".join(dict.fromkeys(result.store for result in results))
        return True, [f"the runs were trained on different stores ({names}): all is measured on {first.store}"]
    if len({(result.scale, result.folded, result.held_out) for result in results}) > 1:
        return True, ["the runs scaled the activations differently, or held out others: all is measured anew"]
    if any(one.row.mse is None for one in chosen):
        return True, ["not every run says its metrics: all is measured anew"]
    return False, []


def _trained_on(chosen: list[Chosen], store: Store, tokens: int) -> Iterator[str]:
    """A note for each run that was trained on some of the tokens measured."""
    first, manifest = first_sequence(store, tokens), store.manifest
    for run in {one.run.folder: one.run for one in chosen}.values():
        if run.result.store_fingerprint != manifest.fingerprint:
            continue
        held_out = _held_out(run)
        if (trained := manifest.sequences - -(-held_out // manifest.context) - first) > 0:
            yield (
                f"run {run.name} was trained on {trained:,} of the {manifest.sequences - first:,} sequences; "
                f"--tokens {held_out} takes only those that it held out"
            )


def _held_out(run: Run) -> int:
    return int(config.read_file(run.folder / CONFIG, "train").get("held_out", 0))


def _losses(files: Sequence[str]) -> dict[tuple[str, str, int], float | None]:
    """The loss recovered against the mean ablation, by run, setup and seed."""
    found: dict[tuple[str, str, int], float | None] = {}
    for name in files:
        try:
            data: Mapping[str, Any] = json.loads(Path(name).read_text(encoding="utf-8"))
            for sae in data["saes"]:
                value = sae["recovered_mean"]
                good = isinstance(value, float | int) and math.isfinite(value)
                found[str(data["run"]), str(sae["setup"]), int(sae["seed"])] = float(value) if good else None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"--losses {name}: not what `hsae evaluate --json` printed ({one_line(error)})") from None
    return found
