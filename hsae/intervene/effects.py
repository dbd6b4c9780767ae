"""What an ablation costs the language model: its next-token loss on a store's sequences, beside that of controls.

A latent's part is taken out of the true activation wherever the latent fires, at positions that the store counts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hsae import origin
from hsae.errors import UserError
from hsae.evidence import Index
from hsae.intervene.controls import like_rate
from hsae.intervene.site import Head, Site
from hsae.intervene.trials import Ablation, Group, Trial
from hsae.lists import named
from hsae.progress import Bar
from hsae.splice import padding
from hsae.store import Chunk, Store

if TYPE_CHECKING:
    from rich.console import Console

Which = Literal["held-out", "strongest"]


@dataclass(frozen=True)
class Effects:
    """What was measured.

    Attributes:
        set_to: the activation given to the latents wherever they fire; 0 takes them out.
        which: the store's last sequences, or those in which the latents fire most strongly.
        sequences: how many.
        positions: those that count; `predictions`: those that the losses are means over.
        clean: the loss of the model as it is, in nats per prediction.
        ablations: each latent alone; then, of several, all together.
        notes: what a reader should know, a line each.
    """

    head: Head
    set_to: float
    which: Which
    sequences: int
    positions: int
    predictions: int
    clean: float
    ablations: tuple[Ablation, ...]
    notes: tuple[str, ...]


def effects(
    site: Site,
    latents: Sequence[int],
    set_to: float = 0.0,
    which: Which = "held-out",
    tokens: int = 8_192,
    controls: int = 3,
    control_seed: int = 0,
    batch: int = 1,
    index: Index | None = None,
    console: Console | None = None,
) -> Effects:
    """Ablate latents, each alone and all together, and measure what that costs.

    Args:
        site: the model, the SAE and the store.
        latents: what to ablate.
        set_to: the activation to give them wherever they fire.
        which: the store's last sequences, which training holds out, or those in which the latents fire most strongly.
        tokens: to measure on, rounded up to whole sequences; of "strongest", a latent has 16 at most.
        controls: random directions, and other latents of like firing rate, to compare each ablation with.
        control_seed: seed of their choice.
        batch: sequences in one pass of the model; their logits are held twice.
        index: what the store says of every latent; None: `site.index()`, where it is needed.
        console: where to show progress; None shows nothing.

    Raises:
        UserError: no such latent, sequences that cannot be measured on, or a hook point that cannot be replaced.
    """
    latents = tuple(latents)
    site.require_latents(latents)
    if index is None and (controls or which == "strongest"):
        index = site.index(console)
    numbers = _numbers(site.store, latents, which, tokens, index)
    others = like_rate(index.firings, latents, controls, control_seed) if index and controls else {}
    generator = torch.Generator().manual_seed(control_seed)
    groups = [
        Group(site.sae, some, set_to, controls, _sets(others, some), generator)
        for some in [*((latent,) for latent in latents), *([latents] if len(latents) > 1 else [])]
    ]
    found = _Found()
    passes = 1 + sum(len(group.trials) for group in groups)
    with Bar(console, "ablate", len(numbers) * site.store.manifest.context * passes) as bar:
        for chunk in _chunks(site.store, site.hook, numbers, batch):
            _measure(site, groups, chunk, found, bar)
    if not found.predictions:
        raise UserError(f"store {site.store.name}: these sequences are too short to predict; raise --tokens")
    ablations = tuple(group.result(site.pieces) for group in groups)
    if any(one.fires for one in ablations) and not any(one.overall.kl for one in ablations):
        raise UserError(f"{site.hook}: changing the activation changes nothing in {site.lm.name}; take another hook")
    return Effects(
        head=site.head,
        set_to=set_to,
        which=which,
        sequences=len(numbers),
        positions=found.positions,
        predictions=found.predictions,
        clean=found.loss / found.predictions,
        ablations=ablations,
        notes=(*site.notes, *_notes(site, which, numbers, ablations)),
    )


@dataclass
class _Found:
    """Sums over what the unchanged model did."""

    positions: int = 0
    predictions: int = 0
    loss: float = 0.0


def _sets(others: dict[int, list[int]], latents: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Sets of others, one for each latent that fires; as many as the latent with the fewest has."""
    return tuple(zip(*(others[latent] for latent in latents if latent in others), strict=False))


def _numbers(store: Store, latents: tuple[int, ...], which: Which, tokens: int, index: Index | None) -> list[int]:
    """The sequences to measure on, in order."""
    wanted, there = -(-tokens // store.manifest.context), store.manifest.sequences
    if which == "held-out":
        return list(range(max(0, there - wanted), there))
    assert index is not None
    # Of several latents, each one's strongest first.
    tops = ([context.sequence for context in index.latent(latent).top] for latent in latents)
    ranked = [number for rank in itertools.zip_longest(*tops) for number in rank if number is not None]
    if not ranked:
        raise UserError(f"store {store.name}: {named(latents)} never fires there, so there are no strongest sequences")
    return sorted([*dict.fromkeys(ranked)][:wanted])


def _chunks(store: Store, hook: str, numbers: list[int], batch: int) -> Iterator[Chunk]:
    """These sequences, as many at a time as stand side by side, `batch` at most."""
    start = 0
    for i in range(1, len(numbers) + 1):
        if i == len(numbers) or numbers[i] != numbers[i - 1] + 1:
            yield from store.chunks(hook, batch, numbers[start], numbers[i - 1] + 1)
            start = i


@torch.inference_mode()
def _measure(site: Site, groups: list[Group], chunk: Chunk, found: _Found, bar: Bar) -> None:
    """Every trial on some sequences."""
    manifest, lm = site.store.manifest, site.lm
    pad = manifest.tokenizer.get("pad") if manifest.hooks[site.hook].excluded.get("padding") else None
    ids, keep = chunk.tokens.long().to(lm.device), chunk.keep.to(lm.device)
    wanted = ~padding(chunk, pad)[:, 1:].to(lm.device)
    seen: list[Tensor] = []

    def look(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return x.clone()

    base = lm.logits(ids, site.hook, look)
    for row in base:
        row.copy_(row.log_softmax(-1))
    x = seen[0]
    targets = base[:, :-1].gather(2, ids[:, 1:, None])[:, :, 0]
    found.loss -= float(targets[wanted].cpu().double().sum())  # MPS has no float64
    found.predictions += int(wanted.sum())
    found.positions += int(keep.sum())
    bar.advance(ids.numel())
    used = sorted({latent for group in groups for trial in group.trials for latent in trial.edit.latents})
    code = site.sae.encode_latents(x[keep], used)
    place = {latent: i for i, latent in enumerate(used)}

    def columns(latents: tuple[int, ...]) -> Float[Tensor, "token some"]:
        return code[:, [place[latent] for latent in latents]]

    for group in groups:
        group.see(columns(group.latents))
        for trial in group.trials:
            own = columns(trial.edit.latents)
            fires = torch.zeros_like(keep)
            fires[keep] = (own > 0).any(1)
            if fires.any():
                change = torch.zeros_like(x)
                change[keep] = trial.edit.change(own).to(x.dtype)
                logits = lm.logits(ids, site.hook, lambda there, change=change: there + change)
            else:
                logits = base
            _tell(trial, chunk.first, ids, base, logits, wanted, fires)
            bar.advance(ids.numel())


def _tell(
    trial: Trial,
    first: int,
    ids: Int[Tensor, "sequence position"],
    base: Tensor,
    logits: Tensor,
    wanted: Tensor,
    fires: Tensor,
) -> None:
    """Add some sequences to a trial's tally. Those in which nothing fires are left out: nothing changes there."""
    for i, fired in enumerate(fires.any(1).tolist()):
        if fired:
            after = logits[i, :-1].log_softmax(-1)
            trial.tally.add(first + i, ids[i], base[i, :-1], after, wanted[i], fires[i, :-1])
        else:
            trial.tally.add_unchanged(int(wanted[i].sum()))


def _notes(site: Site, which: Which, numbers: list[int], ablations: tuple[Ablation, ...]) -> Iterator[str]:
    of = site.subject
    if which == "held-out" and of.manifest.fingerprint == of.record.result.store_fingerprint:
        yield from origin.trained_on(of.record, site.store, numbers[0])
    if which == "strongest":
        yield "these sequences are where the latents fire most, no sample of the store: mind the means over all"
    silent = [one.latents[0] for one in ablations if len(one.latents) == 1 and not one.fires]
    if silent:
        more = "" if which == "strongest" else " (--which strongest takes sequences in which latents fire)"
        yield f"silent in these sequences, so that nothing changes: {named(silent)}{more}"
