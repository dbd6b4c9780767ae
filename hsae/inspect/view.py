"""What there is to show, as plain data with the tokens decoded: the JSON document, and what the terminal draws."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from hsae.errors import UserError
from hsae.evidence.latent import examine
from hsae.evidence.survey import BEFORE, Advance, Survey, cached_survey
from hsae.inspect import InspectConfig
from hsae.inspect.tokens import Pieces
from hsae.record import Baseline, Row
from hsae.run import Run
from hsae.sae import SAE
from hsae.store import Store

GLANCES, SNIPPETS, DEAD = 8, 4, 20
"""latents in each list of an overview, contexts for each of them, dead latents named"""


@dataclass(frozen=True)
class Head:
    """What is looked at: which SAE of which run, on which store.

    `scale` multiplies activations before the encoder; `positions` counts all of the store, those left out included.
    """

    run: str
    setup: str
    seed: int
    setups: tuple[str, ...]
    seeds: tuple[int, ...]
    latents: int
    width: int
    store: str
    hook: str
    positions: int
    rows: int
    scale: float
    folded: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Snippet:
    """A stretch of text by tokens; `peak` is the index of the one where the latent's activation peaks."""

    activation: float
    sequence: int
    position: int
    text: tuple[str, ...]
    peak: int


@dataclass(frozen=True)
class Glance:
    """One latent in a line. `rate` and `maximum` as in `Survey`, `contexts` its strongest ones."""

    latent: int
    rate: float
    mean: float
    maximum: float
    selectivity: float
    contexts: tuple[Snippet, ...]


@dataclass(frozen=True)
class Overview:
    """A run's table, and the latents of one SAE that are worth a look. `dead` names the first of the `dead_latents`."""

    head: Head
    table: tuple[Row, ...]
    baselines: tuple[Baseline, ...]
    held_out: int
    dead_window: int
    most_active: tuple[Glance, ...]
    most_selective: tuple[Glance, ...]
    dead_latents: int
    dead: tuple[int, ...]


@dataclass(frozen=True)
class TextContext:
    """A `Context` with its text: `text[i]` is the piece of `tokens[i]`, `activations[i]` the activation there."""

    sequence: int
    position: int
    activation: float
    start: int
    peak: int
    tokens: tuple[int, ...]
    text: tuple[str, ...]
    activations: tuple[float, ...]


@dataclass(frozen=True)
class TextToken:
    """A `TokenUse` with its text."""

    token: int
    text: str
    firings: int
    mass: float
    occurrences: int


@dataclass(frozen=True)
class LatentView:
    """One latent: `LatentEvidence` with the tokens decoded. Bin i of the histogram ends at (i + 1) · bin_width."""

    head: Head
    latent: int
    rate: float
    firings: int
    mean: float
    maximum: float
    bin_width: float
    histogram: tuple[int, ...]
    contexts: tuple[TextContext, ...]
    tokens: tuple[TextToken, ...]


@dataclass(frozen=True)
class Subject:
    """What the config names, opened and checked."""

    run: Run
    row: Row
    store: Store
    hook: str
    warnings: tuple[str, ...]

    def sae(self) -> SAE:
        """The SAE, checked against the store."""
        sae = self.run.sae(self.row.setup, self.row.seed)
        width = self.store.manifest.hooks[self.hook].width
        if width != sae.width:
            raise UserError(
                f"store {self.store.name}: {self.hook} is {width} wide, run {self.run.name} has SAEs for {sae.width}"
            )
        return sae

    def head(self) -> Head:
        """What is looked at, for the reader."""
        result, manifest = self.run.result, self.store.manifest
        record = manifest.hooks[self.hook]
        return Head(
            run=self.run.name,
            setup=self.row.setup,
            seed=self.row.seed,
            setups=tuple(dict.fromkeys(row.setup for row in result.rows)),
            seeds=tuple(row.seed for row in result.rows if row.setup == self.row.setup),
            latents=result.latents,
            width=result.width,
            store=self.store.name,
            hook=self.hook,
            positions=manifest.tokens,
            rows=record.kept,
            scale=result.scale,
            folded=result.folded,
            warnings=self.warnings,
        )


def open_subject(config: InspectConfig) -> Subject:
    """Open the run and the store that a config names.

    Raises:
        UserError: something is not there; the line says what is.
    """
    run = Run.open(config.run)
    setup = config.setup
    if not setup and config.seed is None:
        # The first SAE that has weights; a run in which all diverged still has a table.
        whole = next((row for row in run.result.rows if not row.diverged), run.result.rows[0])
        row = run.row(whole.setup, whole.seed)
    else:
        row = run.row(setup, config.seed)
    try:
        store = Store.open(config.on or run.result.store)
    except UserError as error:
        if config.on:
            raise
        raise UserError(
            f"run {run.name} was trained on a store that cannot be opened: {error}; --on names another"
        ) from None
    hook, _ = store.hook(config.hook or run.result.hook)
    return Subject(run, row, store, hook, tuple(_warnings(run, store, hook, on=config.on)))


def _warnings(run: Run, store: Store, hook: str, on: str) -> list[str]:
    result, warnings = run.result, []
    known, here = result.model.get("fingerprint"), store.manifest.model.get("fingerprint")
    if known != here:
        warnings.append(
            f"store {store.name} is of another model than run {run.name}: what latents show there may mean nothing"
        )
    if hook != result.hook:
        warnings.append(f"{hook} is not the hook point that run {run.name} was trained on ({result.hook})")
    if not on and store.manifest.fingerprint != result.store_fingerprint:
        warnings.append(f"store {store.name} has been made anew since run {run.name} was trained on it")
    return warnings


def overview(subject: Subject, advance: Advance) -> Overview:
    """The run's table and a survey of one SAE, which is kept in the run folder for the next time."""
    result, row, store = subject.run.result, subject.row, subject.store
    survey = None
    if not row.diverged:
        path = subject.run.folder / "evidence" / f"{row.setup}-{row.seed}-{store.manifest.fingerprint}.safetensors"
        survey = cached_survey(path, subject.sae(), store, subject.hook, advance)
    pieces = Pieces(store.tokenizer)
    dead = survey.dead if survey else []
    return Overview(
        head=subject.head(),
        table=result.rows,
        baselines=result.baselines,
        held_out=result.held_out,
        dead_window=result.dead_window,
        most_active=_glances(survey, survey.most_active(GLANCES), pieces) if survey else (),
        most_selective=_glances(survey, survey.most_selective(GLANCES), pieces) if survey else (),
        dead_latents=len(dead),
        dead=tuple(dead[:DEAD]),
    )


def _glances(survey: Survey, latents: list[int], pieces: Pieces) -> tuple[Glance, ...]:
    rate, selectivity = survey.rate, survey.selectivity
    return tuple(
        Glance(
            latent=i,
            rate=float(rate[i]),
            mean=float(survey.mean[i]),
            maximum=float(survey.maximum[i]),
            selectivity=float(selectivity[i]),
            contexts=tuple(_snippets(survey, i, pieces)),
        )
        for i in latents
    )


def _snippets(survey: Survey, latent: int, pieces: Pieces) -> list[Snippet]:
    snippets = []
    for context in range(SNIPPETS):
        if (sequence := int(survey.sequence[latent, context])) < 0:
            break
        ids = survey.window[latent, context].tolist()
        text = pieces([i for i in ids if i >= 0])
        peak = sum(i >= 0 for i in ids[:BEFORE])
        place = int(survey.position[latent, context])
        snippets.append(Snippet(float(survey.activation[latent, context]), sequence, place, text, peak))
    return snippets


def latent_view(subject: Subject, latent: int, contexts: int, advance: Advance) -> LatentView:
    """One latent with its contexts.

    Raises:
        UserError: there is no such latent.
    """
    sae, row, store = subject.sae(), subject.row, subject.store
    if not 0 <= latent < sae.latents:
        raise UserError(f"latent {latent} is not in 0…{sae.latents - 1} of setup {row.setup}")
    found = examine(sae, store, subject.hook, latent, contexts, advance=advance)
    pieces = Pieces(store.tokenizer)
    return LatentView(
        head=subject.head(),
        latent=latent,
        rate=found.rate,
        firings=found.firings,
        mean=found.mean,
        maximum=found.maximum,
        bin_width=found.histogram.width,
        histogram=found.histogram.counts,
        contexts=tuple(
            TextContext(
                c.sequence, c.position, c.activation, c.start, c.peak, c.tokens, pieces(c.tokens), c.activations
            )
            for c in found.contexts
        ),
        tokens=tuple(TextToken(t.token, pieces.one(t.token), t.firings, t.mass, t.occurrences) for t in found.tokens),
    )


def finite(data: Any) -> Any:
    """Plain data with None for NaN and infinities, which JSON does not have."""
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
