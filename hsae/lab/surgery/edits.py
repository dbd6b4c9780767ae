"""What the settings ask of a run's SAE, checked and done: remove, weaken, strengthen, inject, move."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hsae import config
from hsae.errors import UserError
from hsae.evidence import Subject, open_subject
from hsae.held_out import held_out_rows
from hsae.lab.surgery import SurgeryConfig
from hsae.lab.surgery.certificate import Protocol
from hsae.lab.surgery.latents import empty, removed, turned, weighted, without_directions
from hsae.lab.surgery.ledger import read_tensor
from hsae.lab.surgery.sae import SAEMemory
from hsae.lab.surgery.surgeon import Surgeon
from hsae.lists import latent_list, named
from hsae.record import CONFIG
from hsae.run import Run
from hsae.sae import SAE
from hsae.store import Store

EDITS = ("remove", "weaken", "strengthen", "inject", "move")
BLOCK = 512
"""tokens encoded at once"""


@dataclass(frozen=True)
class Case:
    """An SAE of a run, and the store that it was trained on."""

    run: Run
    subject: Subject
    sae: SAE

    @property
    def words(self) -> str:
        """Which SAE this is."""
        return f"{self.subject.row.setup}, seed {self.subject.row.seed}, of run {self.run.name}"

    @cached_property
    def held(self) -> Float[Tensor, "token width"]:
        """The run's held-out tokens, at the store's scale."""
        tokens = config.read_file(self.run.folder / CONFIG, "train").get("held_out", self.run.result.held_out)
        return held_out_rows(Store(self.subject.folder), self.subject.hook, tokens)

    @cached_property
    def firings(self) -> Float[Tensor, "latent"]:
        """On how many held-out tokens each latent fires."""
        return torch.stack([(self.sae.encode(x) > 0).float().sum(0) for x in self.held.split(BLOCK)]).sum(0)

    def memory(self, sae: SAE, **how: Any) -> SAEMemory:
        """An SAE like this one as a memory; τ is SoftHebb's own, where that trained it."""
        temperature = getattr(self.run.setups[self.subject.row.setup].encoder, "temperature", None)
        return SAEMemory(sae, temperature=temperature, firings=self.firings, data=self.held * sae.scale, **how)

    def latents(self, words: str) -> tuple[int, ...]:
        """The latents of a list such as 27,30-35; none of an empty one.

        Raises:
            UserError: not such a list, or a latent that the SAE does not have.
        """
        try:
            latents = latent_list(words)
        except ValueError as error:
            raise UserError(f"lab surgery: {error}") from None
        if latents and max(latents) >= self.sae.latents:
            raise UserError(f"latent {max(latents)} is not in 0…{self.sae.latents - 1} of {self.words}")
        return latents


def open_case(name: str, setup: str = "", seed: int | None = None) -> Case:
    """An SAE of a run, and its store, as `hsae inspect` finds them.

    Raises:
        UserError: a run, setup, seed or store that is not there, or an SAE that diverged.
    """
    run = Run.open(name)
    subject = open_subject(str(run.folder), setup, seed, on=run.result.store)
    return Case(run, subject, run.sae(subject.row.setup, subject.row.seed))


def other_case(word: str) -> Case:
    """The SAE that RUN, RUN:SETUP or RUN:SETUP:SEED names. Raises as `open_case`."""
    name, setup, seed = (word, "", "") if Path(word).is_dir() else (*word.split(":"), "", "")[:3]
    if seed and not seed.isdecimal():
        raise UserError(f"--to-run {word}: {seed!r} is no seed; name an SAE as RUN:SETUP:SEED")
    return open_case(name, setup, int(seed) if seed else None)


def protocol_of(settings: SurgeryConfig) -> Protocol:
    """How to verify. On a run, `seed` is the SAE's, and the noise is always the same."""
    return Protocol(0, settings.trials, settings.threshold, settings.noise, settings.convention)


@dataclass(frozen=True)
class Edit:
    """An edit, done.

    Attributes:
        what: what tells it from another edit of the same SAE; `latents`: those that were edited.
        words: what was done.
        after: the SAE after it.
        patterns: what it is about, [pattern, width] each.
        source: the SAE and latent whose direction was written, if it was one's.
    """

    what: dict[str, Any]
    words: str
    after: SAE
    patterns: dict[str, Tensor]
    source: tuple[Case, int] | None = None


def perform(settings: SurgeryConfig, case: Case) -> Edit:
    """Do what the settings ask for.

    Raises:
        UserError: latents or a target that are not there, or that the operation cannot work on.
    """
    operation, dense, sae = settings.operation, settings.how == "dense", case.sae
    if dense and operation not in ("inject", "remove"):
        raise UserError(f"lab surgery: --how dense is for inject and remove, not for {operation}")
    if settings.strength != "auto" and not (dense and operation == "inject"):
        raise UserError("lab surgery: on a run --strength is for inject --how dense; for weaken, strengthen: --factor")
    factor = settings.factor if operation in ("weaken", "strengthen") else None
    what = {"operation": operation, "how": settings.how, "factor": factor, "strength": settings.amount}
    latents = case.latents(settings.latent)
    if operation in ("inject", "move"):
        return _written(settings, case, latents, what)
    if not latents:
        raise UserError(f"lab surgery: say which latents to {operation}: --latent 27,30-35")
    if gone := [latent for latent in latents if empty(sae)[latent]]:
        raise UserError(f"{named(gone)} of {case.words}: removed already, nothing is left of it")
    if factor:
        after = weighted(sae, latents, factor if operation == "strengthen" else 1 / factor)
        words = f"{named(latents)} {operation}ed by a factor of {factor:g}"
    else:
        after = without_directions(sae, latents) if dense else removed(sae, latents)
        words = f"{named(latents)} removed" + (" and its direction taken out of all others" if dense else "")
    patterns = {named(latents): sae.W_dec[list(latents)]}
    return Edit({**what, "latents": list(latents)}, words, after, patterns)


def _written(settings: SurgeryConfig, case: Case, latents: tuple[int, ...], what: dict[str, Any]) -> Edit:
    """A direction written: over the least used latent, over a named one, or into all at once."""
    (unit, of, source), dense = target_of(settings, case), settings.how == "dense"
    memory = case.memory(case.sae, dense=dense)
    if settings.operation == "inject" and not latents:
        latents = (memory.nearest(unit) if dense else memory.least_used(),)
    if len(latents) != 1:
        raise UserError(f"lab surgery: {settings.operation} wants one latent: --latent 27")
    if settings.operation == "move":
        after, words = turned(case.sae, latents[0], unit), f"{named(latents)} moved to {of}"
    elif not dense:
        after, words = memory.overwritten(latents[0], unit), f"{named(latents)} overwritten with {of}"
    else:
        made = Surgeon(memory, protocol_of(settings)).inject(unit, strength=settings.amount)
        if made.restored:
            raise UserError(f"{of} could not be injected into {case.words}: {'; '.join(made.notes)}")
        after, words = memory.sae, f"{of} written into all latents at once"
    patterns = {named(latents): case.sae.W_dec[list(latents)], "the target": memory.scaled(unit)[None]}
    what = {**what, "latents": list(latents), "direction": unit.tolist()}
    return Edit(what, words, after, patterns, source)


def target_of(settings: SurgeryConfig, case: Case) -> tuple[Float[Tensor, "width"], str, tuple[Case, int] | None]:
    """What `--to-run` and `--to-latent`, or `--target`, name: a unit vector, where it is from, and whose it is.

    Raises:
        UserError: none is named, it is not there, of another width, zero or not finite.
    """
    source = None
    if settings.to_run:
        other = other_case(settings.to_run)
        if len(latents := other.latents(settings.to_latent)) != 1:
            raise UserError(f"lab surgery: say which latent of {other.words} is the target: --to-latent 5")
        source, words = (other, latents[0]), f"latent {latents[0]} of {other.words}"
        # At whatever scale: that is one number, and turns no direction.
        vector = other.sae.W_dec[latents[0]]
        places = [(c.run.result.model.get("fingerprint"), c.run.result.hook) for c in (case, other)]
        words += ", of another model or hook point," if places[0] != places[1] else ""
    elif settings.target:
        # Of the file only its name: runs are shared with these words.
        vector, words = read_tensor(settings.target, 1)[2].float(), Path(settings.target).name
    else:
        raise UserError("lab surgery: say what to write: --to-run RUN --to-latent 5, or --target FILE.safetensors")
    if len(vector) != case.sae.width:
        raise UserError(f"{words}: {len(vector)} wide, the SAE {case.sae.width}: no direction among its activations")
    if not bool(vector.isfinite().all()) or not bool(vector.any()):
        raise UserError(f"{words}: zero or not finite, so no direction")
    return vector / vector.norm(), words, source
