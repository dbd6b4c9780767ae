"""What evidence is about: one SAE of a run, on one hook point of a store. Opened and checked without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hsae import config
from hsae.errors import UserError
from hsae.evidence.latent import BEFORE, FORM, RANDOM, SAMPLES, TOKENS, TOP, WINDOW
from hsae.files import named_folder
from hsae.record import Record, Row
from hsae.store.manifest import NAME, HookRecord, Manifest
from hsae.store.tokenizer import read_tokenizer


@dataclass(frozen=True)
class Subject:
    """One SAE and the store to take evidence from.

    Attributes:
        record: the run.
        row: the SAE's line in its table.
        folder: the store's folder.
        manifest: the store's.
        hook: a hook point of the store, as wide as the SAE.
        warnings: what a reader should know before taking the evidence for what it looks like, a line each.
    """

    record: Record
    row: Row
    folder: Path
    manifest: Manifest
    hook: str
    warnings: tuple[str, ...]

    @property
    def store(self) -> str:
        """The store's name."""
        return self.folder.name

    @property
    def hook_record(self) -> HookRecord:
        """What the manifest says of the hook point."""
        return self.manifest.hooks[self.hook]

    @cached_property
    def tokenizer(self) -> Any:
        """See `read_tokenizer`."""
        return read_tokenizer(self.folder, self.manifest)

    @cached_property
    def facts(self) -> dict[str, str]:
        """What an index is of; one with other facts is another.

        Raises:
            UserError: the SAE diverged, or its weights are damaged.
        """
        return {
            "format": FORM,
            "shape": f"{TOP} + {SAMPLES} contexts and {RANDOM} windows of {BEFORE} + 1 + {WINDOW - BEFORE - 1} tokens, "
            f"{TOKENS} tokens",
            "sae": self.record.fingerprint(self.row),
            "store": self.manifest.fingerprint,
            "hook": self.hook,
        }

    @property
    def index_path(self) -> Path:
        """Where the index is kept: in the run folder, under a name that tells indexes apart."""
        name = f"{self.row.setup}-{self.row.seed}-{config.fingerprint(self.facts, 12)}.safetensors"
        return self.record.folder / "evidence" / name


def open_subject(run: str = "", setup: str = "", seed: int | None = None, on: str = "", hook: str = "") -> Subject:
    """Open what is named.

    Args:
        run: name or path of a run; empty: the newest.
        setup: the setup; empty: the first that did not diverge.
        seed: its seed; None: its first.
        on: store to take evidence from; empty: the one that the run was trained on.
        hook: hook point of that store; empty: the one that the run was trained on.

    Raises:
        UserError: something is not there, or the store's activations are not as wide as the SAE; the line says what is.
    """
    record = Record.open(run)
    row = record.whole(setup, seed)
    try:
        folder = named_folder(on or record.result.store, "activations", NAME)
        manifest = Manifest.read(folder)
    except UserError as error:
        if on:
            raise
        raise UserError(
            f"run {record.name} was trained on a store that cannot be opened: {error}; --on names another"
        ) from None
    hook, of_hook = manifest.hook(folder.name, hook or record.result.hook)
    if of_hook.width != record.result.width:
        raise UserError(
            f"store {folder.name}: {hook} is {of_hook.width} wide, run {record.name} has SAEs for {record.result.width}"
        )
    return Subject(record, row, folder, manifest, hook, tuple(_warnings(record, folder.name, manifest, hook, on)))


def _warnings(record: Record, store: str, manifest: Manifest, hook: str, on: str) -> list[str]:
    result, warnings = record.result, []
    if result.model.get("fingerprint") != manifest.model.get("fingerprint"):
        warnings.append(
            f"store {store} is of another model than run {record.name}: what latents show there may mean nothing"
        )
    if hook != result.hook:
        warnings.append(f"{hook} is not the hook point that run {record.name} was trained on ({result.hook})")
    if not on and manifest.fingerprint != result.store_fingerprint:
        warnings.append(f"store {store} has been made anew since run {record.name} was trained on it")
    return warnings
