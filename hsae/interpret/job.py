"""The run of `hsae interpret`: which SAEs, what is there already, who explains the rest, what is kept and shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from hsae.evidence import Subject, open_index, open_subject
from hsae.interpret import InterpretConfig
from hsae.interpret.endpoint import Endpoint
from hsae.interpret.examples import NEVER, Halves
from hsae.interpret.judge import Judge, Model
from hsae.interpret.local import Local
from hsae.interpret.results import Book, Explanation, path_of, read_book, write_book
from hsae.progress import Bar, say
from hsae.record import Record
from hsae.terminal import Terminal

SEED = 0
"""of the even draw of `sample`"""


@dataclass(frozen=True)
class Explained:
    """One SAE with its explanations."""

    subject: Subject
    book: Book


def run(settings: InterpretConfig, console: Console | None = None) -> None:
    """See `hsae.interpret.interpret`."""
    from hsae.interpret.report import document, draw
    from hsae.plain import finite

    console = console or Terminal()
    errors = Terminal(stderr=True)
    model = cache(lambda: _model(settings, errors))
    explained = [one(settings, subject, errors, model) for subject in subjects(settings)]
    if isinstance(asked := model() if model.cache_info().currsize else None, Endpoint):
        say(errors, f"{settings.endpoint}: {asked.cost}")
    if settings.json:
        console.file.write(json.dumps(finite(document(explained)), indent=1, allow_nan=False) + "\n")
        return
    for part in draw(explained):
        console.print(part)


def subjects(settings: InterpretConfig) -> list[Subject]:
    """The SAEs that are asked for, opened and checked.

    Raises:
        UserError: one is not there, or has diverged.
    """
    record = Record.open(settings.run)
    whole = (row.setup for row in record.result.rows if not row.diverged and settings.seed in (None, row.seed))
    names = settings.setups or tuple(dict.fromkeys(whole)) or (record.row(seed=settings.seed).setup,)
    found = [open_subject(str(record.folder), n, settings.seed, settings.on, settings.hook) for n in names]
    for subject in found:
        subject.record.require_weights(subject.row)
    return found


def one(settings: InterpretConfig, subject: Subject, errors: Console, model: Callable[[], Model]) -> Explained:
    """Explain one SAE, or take its explanations from where they are kept."""
    for warning in subject.warnings:
        say(errors, f"note: {warning}")
    index = open_index(subject, errors)
    maker = _maker(settings)
    path = path_of(subject, maker)
    book = read_book(path, subject)
    there = dict(book.explanations) if book and dict(book.settings) == maker else {}
    halves = Halves(index)
    reasons = [halves.reason(latent) for latent in range(index.latents)]
    able = [latent for latent, why in enumerate(reasons) if not why]
    if settings.sample:
        drawn = np.random.default_rng(SEED).permutation(np.array(able, np.int64))[: settings.sample]
        able = sorted(drawn.tolist())
    elif settings.explainer == "local":
        # What costs nothing is explained though it cannot be scored.
        able = [latent for latent, why in enumerate(reasons) if why != NEVER]
    wanted = [latent for latent in able if latent not in there]
    if wanted:
        with Bar(errors, f"explaining {subject.row.setup}", len(wanted), unit="latents") as bar:
            if settings.explainer == "local":
                there |= Local(halves, subject.tokenizer).explain(wanted, bar.advance)
            else:
                there |= Judge(model(), halves, subject.tokenizer, _journal(path)).explain(wanted, bar.advance)
    for latent, why in enumerate(reasons):
        if why and latent not in there:
            there[latent] = Explanation(latent, "", why)
    there = {latent: replace(one, rate=float(index.rate[latent])) for latent, one in there.items()}
    book = Book(maker, there)
    if wanted or not path.exists():
        write_book(path, subject, book)
        _journal(path).unlink(missing_ok=True)
    return Explained(subject, book)


def _maker(settings: InterpretConfig) -> Mapping[str, Any]:
    """What decides about explanations and scores."""
    if settings.explainer == "local":
        return {"explainer": "local"}
    if settings.explainer == "transformers":
        return {"explainer": "transformers", "model": settings.model}
    return {"explainer": "openai", "model": settings.model, "endpoint": settings.endpoint}


def _journal(path: Path) -> Path:
    return path.with_suffix(".journal")


def _model(settings: InterpretConfig, errors: Console) -> Model:
    """The language model that is asked.

    Raises:
        UserError: it cannot be loaded.
    """
    if settings.explainer == "transformers":
        from hsae.interpret.chat import Chat

        return Chat(settings.model)
    endpoint = Endpoint(settings.endpoint, settings.model, settings.concurrency, settings.timeout)
    if not endpoint.is_here:
        say(errors, f"note: contexts, which are text of the store, are sent to {settings.endpoint}")
    return endpoint
