"""What the settings name, checked: an SAE of a run, some of its latents, and a direction to write."""

from __future__ import annotations

from dataclasses import dataclass
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
from hsae.lab.surgery.ledger import read_tensor
from hsae.lab.surgery.sae import SAEMemory
from hsae.lists import latent_list
from hsae.record import CONFIG, Row
from hsae.run import Run
from hsae.sae import SAE
from hsae.store import Store

BLOCK = 512
"""tokens encoded at once"""


@dataclass(frozen=True)
class Case:
    """An SAE of a run.

    Attributes:
        store, held: the run's store, and its held-out tokens at the store's scale; None where the store is gone.
        note: why they are; or what else is wrong with the store.
    """

    run: Run
    row: Row
    sae: SAE
    store: Store | None
    held: Float[Tensor, "token width"] | None
    note: str

    @property
    def words(self) -> str:
        """Which SAE this is."""
        return f"{self.row.setup}, seed {self.row.seed}, of run {self.run.name}"

    def firings(self) -> Float[Tensor, "latent"] | None:
        """On how many held-out tokens each latent fires."""
        if self.held is None:
            return None
        return torch.stack([(self.sae.encode(x) > 0).float().sum(0) for x in self.held.split(BLOCK)]).sum(0)

    def memory(self, sae: SAE, **how: Any) -> SAEMemory:
        """An SAE like this one as a memory; τ is SoftHebb's own, where that trained it."""
        temperature = getattr(self.run.setups[self.row.setup].encoder, "temperature", None)
        data = None if self.held is None else self.held * sae.scale
        return SAEMemory(sae, temperature=temperature, data=data, **how)


def open_case(run: str, setup: str = "", seed: int | None = None) -> Case:
    """An SAE, as `hsae inspect` finds it, and its store, if that is there.

    Raises:
        UserError: a run, setup or seed that is not there, or an SAE that diverged.
    """
    opened = Run.open(run)
    row, result = opened.whole(setup, seed), opened.result
    sae = opened.sae(row.setup, row.seed)
    try:
        store = Store.open(result.store)
        hook, record = store.hook(result.hook)
        if record.width != result.width:
            raise UserError(f"store {store.name}: {hook} is {record.width} wide, the SAE {result.width}")
        tokens = config.read_file(opened.folder / CONFIG, "train").get("held_out", result.held_out)
        held = held_out_rows(store, hook, tokens)
    except UserError as error:
        return Case(opened, row, sae, None, None, f"{error}: nothing can be measured")
    anew = store.manifest.fingerprint != result.store_fingerprint
    note = f"store {store.name} has been made anew since run {opened.name} was made" if anew else ""
    return Case(opened, row, sae, store, held, note)


def named_case(word: str) -> Case:
    """The SAE that RUN, RUN:SETUP or RUN:SETUP:SEED names.

    Raises:
        UserError: as `open_case`.
    """
    name, setup, seed = (word, "", "") if Path(word).is_dir() else (*word.split(":"), "", "")[:3]
    if seed and not seed.isdecimal():
        raise UserError(f"--to-run {word}: {seed!r} is no seed; name an SAE as RUN:SETUP:SEED")
    return open_case(name, setup, int(seed) if seed else None)


def latents_of(settings: SurgeryConfig, case: Case) -> tuple[int, ...]:
    """The latents that `--latent` names.

    Raises:
        UserError: not a list of latents, or one that the SAE does not have.
    """
    try:
        latents = latent_list(settings.latent)
    except ValueError as error:
        raise UserError(f"lab surgery: {error}") from None
    for latent in latents:
        _check(latent, case)
    return latents


def _check(latent: int, case: Case) -> None:
    if latent >= case.sae.latents:
        raise UserError(f"latent {latent} is not in 0…{case.sae.latents - 1} of {case.words}")


@dataclass(frozen=True)
class Target:
    """A unit vector in the space of the activations (scales are single numbers, so they turn nothing).

    Attributes:
        words: where it is from.
        subject: the latent that it is the decoder direction of, where its contexts mean something to the SAE.
        note: why they do not.
    """

    direction: Float[Tensor, "width"]
    words: str
    subject: tuple[Subject, int] | None = None
    note: str = ""


def target_of(settings: SurgeryConfig, case: Case) -> Target:
    """The direction that `--to-run` and `--to-latent`, or `--target`, name.

    Raises:
        UserError: none is named, it is not there, of another width, zero or not finite.
    """
    subject, note, width = None, "", case.sae.width
    if settings.to_run:
        other = named_case(settings.to_run)
        if not settings.to_latent.isdecimal():
            raise UserError(f"lab surgery: say which latent of {other.words} is the target: --to-latent 5")
        latent = int(settings.to_latent)
        _check(latent, other)
        vector, words = other.sae.W_dec[latent], f"latent {latent} of {other.words}"
        places = [(c.run.result.model.get("fingerprint"), c.run.result.hook) for c in (case, other)]
        if places[0] != places[1]:
            note = f"runs {case.run.name} and {other.run.name} are of different models or hook points"
        elif other.store is not None:
            subject = open_subject(str(other.run.folder), other.row.setup, other.row.seed), latent
    elif settings.target not in ("", "random"):
        vector, words = read_tensor(settings.target, 1)[2].float(), settings.target
    else:
        raise UserError("lab surgery: say what to write: --to-run RUN --to-latent 5, or --target FILE.safetensors")
    if vector.shape != (width,):
        raise UserError(f"{words}: {len(vector)} wide, the SAE {width}: no direction among its activations")
    if not bool(vector.isfinite().all()) or not bool(vector.any()):
        raise UserError(f"{words}: zero or not finite, so no direction")
    return Target(vector / vector.norm(), words, subject, note)
