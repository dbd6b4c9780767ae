"""The language model that a store came from: loaded as its manifest says, and held against what it stores."""

from __future__ import annotations

from hsae import config
from hsae.errors import UserError
from hsae.lm import LM
from hsae.loading import load_lm
from hsae.record import CONFIG, Record
from hsae.store import Chunk, Store

# How far a recomputed activation may be from the stored one, in norms, at the median position: kernels differ by some
# 1e-5, storing rounds by the rest.
TOLERANCE = {"fp32": 1e-3, "fp16": 3e-3, "bf16": 1e-2}


def load(store: Store, model: str = "", device: str = "auto", trust_remote_code: bool = False) -> LM:
    """The language model that a store came from, or the one named instead.

    Args:
        store: its manifest says which model, revision and tokeniser.
        model: hub id, folder or .gguf file to take instead; empty: the manifest's.
        device: cuda, mps, cpu, or auto.
        trust_remote_code: let the model's repository run its own code.

    Raises:
        UserError: none is named, or it cannot be loaded.
    """
    manifest = store.manifest
    name = model or manifest.model.get("name")
    if not (isinstance(name, str) and name):
        raise UserError(
            f"store {store.name}: its manifest names no language model; take a store made by `hsae harvest`, or name "
            "the model with --model"
        )
    revision = "" if model else str(manifest.model.get("revision") or "")
    tokenizer = str(manifest.harvest.get("tokenizer") or "")
    try:
        return load_lm(name, device, revision, tokenizer, trust_remote_code)
    except UserError as error:
        if model:
            raise
        raise UserError(f"store {store.name}: {error}; name its model with --model") from None


def check(lm: LM, store: Store, hook: str, batch: Chunk) -> None:
    """Whether a model computes the activations that a store holds.

    Args:
        lm: the model.
        store: the store.
        hook: a hook point of the store.
        batch: some of its sequences.

    Raises:
        UserError: it does not; the line names both fingerprints.
    """
    manifest, off = store.manifest, ""
    if manifest.context > lm.context_limit:
        off = f"it takes {lm.context_limit} tokens at most, the store's sequences have {manifest.context}"
    elif int(batch.tokens.max()) >= lm.vocabulary:
        off = f"its vocabulary has {lm.vocabulary} entries, the store holds token {int(batch.tokens.max())}"
    elif hook not in lm.bridge.hook_dict:
        off = f"it has no hook point {hook}"
    else:
        there, here = batch.activations, lm.tap(batch.tokens.long(), (hook,))[hook].cpu()
        if there.shape != here.shape:
            off = f"{hook} is {here.shape[-1]} wide, {there.shape[-1]} in the store"
        else:
            # The median: stored as fp16, single positions with huge norms overflow.
            error = ((here - there).norm(dim=-1) / there.norm(dim=-1).clamp_min(1e-12)).median().item()
            if not error <= TOLERANCE[manifest.dtype]:
                off = f"at {hook} it differs by {100 * error:.2g}% from what is stored"
    if off:
        known = manifest.model.get("fingerprint", "unknown")
        raise UserError(
            f"model {lm.name} (fingerprint {lm.fingerprint}) is not the one of store {store.name} ({known}): {off}; "
            "name the right one with --model"
        )


def differs(lm: LM, store: Store) -> tuple[str, ...]:
    """A line if the weights of a model that passed `check` are not those of the store's model; else nothing."""
    known = store.manifest.model.get("fingerprint")
    if known == lm.fingerprint:
        return ()
    line = (
        f"the model's fingerprint is {lm.fingerprint}, the store's {known}: it computes the same activations, but its "
        "weights are not the same"
    )
    return (line,)


def trained_on(run: Record, store: Store, first: int) -> tuple[str, ...]:
    """A line if a run was trained on some of its store's sequences from `first` on; else nothing."""
    manifest = store.manifest
    held_out = config.read_file(run.folder / CONFIG, "train").get("held_out", 0)
    trained = manifest.sequences - -(-held_out // manifest.context) - first
    if trained <= 0:
        return ()
    line = (
        f"{trained:,} of the {manifest.sequences - first:,} sequences were trained on; "
        f"--tokens {held_out} takes held-out ones only"
    )
    return (line,)
