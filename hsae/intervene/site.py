"""Where one intervenes: a language model, a hook point in it, an SAE there, and the store that says what is usual."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hsae import origin
from hsae.errors import UserError
from hsae.evidence import Index, Subject, open_index, open_subject
from hsae.harvesting.config import HarvestConfig
from hsae.harvesting.exclude import keep_mask
from hsae.inspect.tokens import Pieces
from hsae.lm import LM
from hsae.run import Run
from hsae.sae import SAE
from hsae.store import Store

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Head:
    """What was looked at: which SAE of which run, on which store, in which model."""

    run: str
    setup: str
    seed: int
    latents: int
    store: str
    hook: str
    model: str


@dataclass(frozen=True)
class Site:
    """A language model with an SAE at a hook point of it.

    Attributes:
        subject: the run, the row of its table, the store and the hook point.
        store: its sequences are measured on; its activations say what is usual.
        lm: the language model; it computes what the store holds.
        sae: the SAE, on the model's device.
        notes: what a reader should know, a line each.
    """

    subject: Subject
    store: Store
    lm: LM
    sae: SAE
    notes: tuple[str, ...]

    @property
    def hook(self) -> str:
        """The hook point."""
        return self.subject.hook

    @property
    def head(self) -> Head:
        """For the reader."""
        of = self.subject
        return Head(of.record.name, of.row.setup, of.row.seed, self.sae.latents, of.store, of.hook, self.lm.name)

    @cached_property
    def pieces(self) -> Pieces:
        """Token ids to text."""
        return Pieces(self.subject.tokenizer or self.lm.tokenizer)

    @cached_property
    def usual_norm(self) -> float:
        """The root mean square norm of the store's activations."""
        return math.sqrt(sum(self.subject.hook_record.second_moment))

    def index(self, console: Console | None = None) -> Index:
        """What the store says of every latent; built on first use (see `open_index`)."""
        return open_index(self.subject, console)

    def require_latents(self, latents: Sequence[int]) -> None:
        """Refuse latents that the SAE does not have.

        Raises:
            UserError: none is named, or there is no such latent.
        """
        if not latents:
            raise UserError("no latent is named")
        for latent in latents:
            if not 0 <= latent < self.sae.latents:
                raise UserError(f"latent {latent} is not in 0…{self.sae.latents - 1} of setup {self.subject.row.setup}")

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a text, opened as `hsae harvest` opened a text that begins a row of the store.

        Raises:
            UserError: there is nothing in it.
        """
        harvest, bos = self.store.manifest.harvest, self.lm.tokenizer.bos_token_id
        ids = list(self.lm.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        if not ids:
            raise UserError("the text is empty; give at least one token")
        before_documents = harvest.get("separator") == "bos" and harvest.get("pack") == "packed"
        if bos is not None and ids[0] != bos and (harvest.get("prepend_bos") or before_documents):
            ids = [bos, *ids]
        return ids

    def counts(
        self, tokens: Int[Tensor, "sequence position"], x: Float[Tensor, "sequence position width"]
    ) -> Bool[Tensor, "sequence position"]:
        """Which positions the store would count (see `HarvestConfig`'s exclude_…), on the device of `x`.

        Args:
            tokens: token ids, without padding.
            x: the activations there.
        """
        known = ("exclude_special", "exclude_first", "exclude_norm", "context")
        said = {key: value for key, value in self.store.manifest.harvest.items() if key in known}
        lengths = torch.full((len(tokens),), tokens.shape[1])
        keep, _ = keep_mask(HarvestConfig(**said), tokens.cpu(), lengths, x, self.lm.special_ids)
        return keep.to(x.device)


def open_site(
    run: str = "",
    setup: str = "",
    seed: int | None = None,
    on: str = "",
    hook: str = "",
    model: str = "",
    device: str = "auto",
    trust_remote_code: bool = False,
    lm: LM | None = None,
) -> Site:
    """Open a run's SAE, a store and the language model that the store came from.

    Args:
        run: name or path; empty: the newest.
        setup: the setup; empty: the run's first that has weights.
        seed: its random seed; None: its first.
        on: the store; empty: the one trained on.
        hook: hook point of that store; empty: the one trained on.
        model: hub id, folder or .gguf file of the language model; empty: where the store's manifest says.
        device: cuda, mps, cpu, or auto.
        trust_remote_code: let the model's repository run its own code.
        lm: a model that is loaded already; then `model`, `device` and `trust_remote_code` say nothing.

    Raises:
        UserError: something is not there, or the model does not compute what the store holds.
    """
    subject = open_subject(run, setup, seed, on, hook)
    sae = Run(subject.record.folder).sae(subject.row.setup, subject.row.seed)
    store = Store(subject.folder)
    lm = lm or origin.load(store, model, device, trust_remote_code)
    origin.check(lm, store, subject.hook, next(store.chunks(subject.hook, 1)))
    return Site(subject, store, lm, sae.to(lm.device), (*subject.warnings, *origin.differs(lm, store)))
