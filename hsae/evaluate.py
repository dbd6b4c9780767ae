"""`hsae evaluate`: what a language model loses when an SAE's reconstruction stands in for the activation.

    loss recovered = (CE of an ablation - CE with the SAE) / (CE of the ablation - CE of the clean model)

1 is a perfect reconstruction, 0 one no better than the ablation: zeros, or the mean activation of the store.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from hsae import origin
from hsae.config import require
from hsae.errors import UserError
from hsae.lm import LM
from hsae.record import Row
from hsae.run import Run
from hsae.sae import SAE
from hsae.splice import Loss, Losses, measure
from hsae.store import Store

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class EvaluateConfig:
    """What to evaluate. With nothing given: every SAE of the newest run, on its held-out tokens."""

    run: str = ""
    """name or path of a run; empty: the newest"""
    setups: tuple[str, ...] = ()
    """setups to evaluate; empty: all that did not diverge"""
    seeds: tuple[int, ...] = ()
    """seeds to evaluate; empty: all"""
    tokens: int = 16_384
    """tokens to evaluate on, rounded up to whole sequences, from the store's end: those that training holds out"""
    batch: int = 4
    """sequences in one pass of the model; their logits are held twice"""
    device: str = "auto"
    """cuda, mps, cpu, or auto"""
    model: str = ""
    """hub id, folder or .gguf file of the language model; empty: where the store's manifest says"""
    trust_remote_code: bool = False
    """let the model's repository run its own code"""
    json: bool = False
    """print one JSON document"""

    def __post_init__(self) -> None:
        require(self.tokens >= 1, "tokens", "1 or above", self.tokens)
        require(self.batch >= 1, "batch", "1 or above", self.batch)


@dataclass(frozen=True)
class Spliced:
    """The model with one SAE spliced in. Nats per prediction, KL(clean ‖ spliced); `l0` over the positions spliced.

    `recovered_zero`, `recovered_mean`: the loss recovered against each ablation, None where that costs nothing.
    """

    setup: str
    seed: int
    l0: float
    cross_entropy: float
    kl: float
    recovered_zero: float | None
    recovered_mean: float | None


@dataclass(frozen=True)
class Evaluation:
    """What was measured on the store's last sequences.

    Attributes:
        model: its name, and its `model_fingerprint`.
        tokens: predictions that the losses are means over: all but each sequence's last position and padding.
        spliced: positions replaced; those that the store excludes keep the clean activation.
        clean, zero, mean: the model as it is, and with the activation replaced by zeros or by the store's mean.
        notes: what a reader should know, a line each.
    """

    run: str
    store: str
    hook: str
    model: str
    model_fingerprint: str
    sequences: int
    tokens: int
    spliced: int
    clean: Loss
    zero: Loss
    mean: Loss
    saes: tuple[Spliced, ...]
    notes: tuple[str, ...]


def evaluate(settings: EvaluateConfig, console: Console | None = None) -> Evaluation:
    """Splice a run's SAEs into the language model, and measure what that costs.

    Args:
        settings: what to evaluate.
        console: where to show progress; None shows nothing.

    Raises:
        UserError: a run, setup, seed, store or model that is not there, a model that is not the store's, or a hook
            point whose activation cannot be replaced.
    """
    from hsae.progress import Bar

    run = Run.open(settings.run)
    store = _store(run)
    hook, record = store.hook(run.result.hook)
    rows, notes = _rows(run, settings)
    saes = {(row.setup, row.seed): _Reconstruction(run.sae(row.setup, row.seed)) for row in rows}
    if record.width != run.result.width:
        raise UserError(
            f"store {store.name}: {hook} is {record.width} wide, run {run.name} has SAEs for {run.result.width}"
        )
    first = max(0, store.manifest.sequences - -(-settings.tokens // store.manifest.context))
    if not any(chunk.keep.any() for chunk in store.chunks(hook, 64, first)):
        raise UserError(f"store {store.name}: no position of its last sequences counts; raise --tokens")
    lm = origin.load(store, settings.model, settings.device, settings.trust_remote_code)
    origin.check(lm, store, hook, next(store.chunks(hook, settings.batch, first)))
    for reconstruction in saes.values():
        reconstruction.sae = reconstruction.sae.to(lm.device)
    mean = torch.tensor(record.mean, dtype=torch.float32, device=lm.device)
    ablations = {"zero": torch.zeros_like, "mean": lambda x: mean.expand_as(x)}
    sequences = store.manifest.sequences - first
    passes = sequences * store.manifest.context * (1 + len(ablations) + len(saes))
    pad = store.manifest.tokenizer.get("pad") if record.excluded.get("padding") else None
    with Bar(console, "evaluate", passes) as bar:
        chunks = store.chunks(hook, settings.batch, first)
        losses = measure(lm, hook, chunks, {**ablations, **saes}, pad, bar.advance)
    if losses.tokens == 0:
        raise UserError(f"store {store.name}: its last {sequences} sequences are too short to predict; raise --tokens")
    if losses.replaced["zero"].kl == 0:
        raise UserError(f"{hook}: replacing the activation changes nothing in {lm.name}; take another hook point")
    notes += _notes(run, store, lm, first)
    return _evaluation(run, store, hook, lm, sequences, losses, saes, notes)


class _Reconstruction:
    """An SAE as a replacement, and how many latents were active."""

    def __init__(self, sae: SAE) -> None:
        self.sae, self.active = sae, 0

    def __call__(self, x: Float[Tensor, "token width"]) -> Float[Tensor, "token width"]:
        code = self.sae.encode(x)
        self.active += int((code != 0).sum())
        return self.sae.decode(code)


def _store(run: Run) -> Store:
    try:
        return Store.open(run.result.store)
    except UserError as error:
        raise UserError(f"run {run.name} was trained on a store that cannot be opened: {error}") from None


def _rows(run: Run, settings: EvaluateConfig) -> tuple[list[Row], list[str]]:
    """The run's rows that the settings name, and a note for each of them that has no weights."""
    for setup in settings.setups:
        run.row(setup)
    named = [row for row in run.result.rows if not settings.setups or row.setup in settings.setups]
    for seed in settings.seeds:
        if all(row.seed != seed for row in named):
            run.row(named[0].setup, seed)
    named = [row for row in named if not settings.seeds or row.seed in settings.seeds]
    whole = [row for row in named if not row.diverged]
    if not whole:
        raise UserError(f"run {run.name}: every SAE asked for diverged, so there is none to evaluate")
    return whole, [f"{row.setup}, seed {row.seed}, diverged {row.diverged}" for row in named if row.diverged]


def _notes(run: Run, store: Store, lm: LM, first: int) -> list[str]:
    notes, manifest = [*origin.differs(lm, store)], store.manifest
    if manifest.fingerprint != run.result.store_fingerprint:
        notes.append(f"store {store.name} has been made anew since run {run.name} was trained on it")
    return [*notes, *origin.trained_on(run, store, first)]


def _evaluation(
    run: Run,
    store: Store,
    hook: str,
    lm: LM,
    sequences: int,
    losses: Losses[Any],
    saes: dict[tuple[str, int], _Reconstruction],
    notes: list[str],
) -> Evaluation:
    clean, zero, mean = losses.clean, losses.replaced["zero"], losses.replaced["mean"]

    def spliced(setup: str, seed: int) -> Spliced:
        loss = losses.replaced[setup, seed]
        return Spliced(
            setup=setup,
            seed=seed,
            l0=saes[setup, seed].active / losses.spliced,
            cross_entropy=loss.cross_entropy,
            kl=loss.kl,
            recovered_zero=_recovered(zero, loss, clean),
            recovered_mean=_recovered(mean, loss, clean),
        )

    return Evaluation(
        run=run.name,
        store=store.name,
        hook=hook,
        model=lm.name,
        model_fingerprint=lm.fingerprint,
        sequences=sequences,
        tokens=losses.tokens,
        spliced=losses.spliced,
        clean=clean,
        zero=zero,
        mean=mean,
        saes=tuple(spliced(*key) for key in saes),
        notes=tuple(notes),
    )


def _recovered(ablated: Loss, spliced: Loss, clean: Loss) -> float | None:
    cost = ablated.cross_entropy - clean.cross_entropy
    if not abs(cost) > 1e-6 * clean.cross_entropy:  # an ablation that changes nothing leaves nothing to recover
        return None
    return (ablated.cross_entropy - spliced.cross_entropy) / cost
