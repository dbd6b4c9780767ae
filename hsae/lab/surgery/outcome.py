"""What an edit did to a run's SAE: as a memory, to reconstruction and language model, in the latents' contexts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from hsae import origin
from hsae.evaluate import EvaluateConfig
from hsae.evidence import Subject, open_index, open_subject
from hsae.inspect.tokens import Pieces
from hsae.interpret.score import wilson
from hsae.lab.surgery.case import BLOCK, Case
from hsae.lab.surgery.certificate import Protocol, Verdict
from hsae.lab.surgery.latents import empty, per_latent
from hsae.lab.surgery.sae import DYNAMICS, SAEMemory
from hsae.lab.surgery.surgeon import Surgeon, difference
from hsae.metrics import score
from hsae.sae import SAE
from hsae.splice import measure
from hsae.store import Store

if TYPE_CHECKING:
    from rich.console import Console

OTHERS, SHOWN, CONTEXTS, NEAR = 32, 3, 4, 4
"""other latents verified; latents whose contexts are looked at, how many of each, and how many others by each"""


def changes(before: SAE, after: SAE) -> dict[str, dict[str, Any]]:
    """For each tensor that differs: in how many latents, rank(ΔW), ‖ΔW‖_F / ‖W‖_F, and how much ‖W‖_F grew."""
    found = {}
    for (name, old), new in zip(per_latent(before).items(), per_latent(after).values(), strict=True):
        old, new = (t.reshape(len(t), -1) for t in (old, new))
        if latents := int((old != new).any(1).sum()):
            found[name] = {"latents": latents, **asdict(difference(old, new))}
    return found


def verified(
    case: Case, after: SAE, latents: Sequence[int], patterns: Mapping[str, Tensor], protocol: Protocol
) -> list[dict[str, Any]]:
    """Whether patterns, [pattern, width] by what they are, and other latents in use come back from noise, by both
    readings, before and after."""
    used = case.firings()
    used = case.sae.W_dec.norm(dim=1) if used is None else used.masked_fill(empty(case.sae), 0)
    order = [i for i in used.argsort(descending=True, stable=True).tolist() if used[i] > 0 and i not in latents]
    found = []
    for dynamics in DYNAMICS:
        memories = [case.memory(sae, dynamics=dynamics) for sae in (case.sae, after)]
        # One reading is enough for those: on the sphere hardly any row is a basin to begin with.
        others = {"other latents": case.sae.W_dec[order[:OTHERS]]} if dynamics == "softmax" else {}
        for what, rows in {**patterns, **others}.items():
            verdicts = [asdict(pooled(memory, rows, protocol)) for memory in memories]
            energy = [float(memory.energy(rows).mean()) for memory in memories]
            said = {"what": what, "patterns": len(rows), "dynamics": dynamics, "energy": energy}
            found.append({**said, "before": verdicts[0], "after": verdicts[1]})
    return found


def pooled(memory: SAEMemory, patterns: Float[Tensor, "pattern width"], protocol: Protocol) -> Verdict:
    """Noisy starts at all of some patterns, taken together."""
    surgeon = Surgeon(memory, protocol)
    each = [surgeon.verify(pattern) for pattern in patterns]
    hits, trials = sum(v.hits for v in each), max(sum(v.trials for v in each), 1)
    return Verdict(hits, trials, *wilson(hits, trials), cosine=sum(v.cosine for v in each) / max(len(each), 1))


def metrics(case: Case, sae: SAE) -> dict[str, Any]:
    """As `hsae train` measures them, in the units of training. `dead`: latents silent on all held-out tokens."""
    assert case.held is not None
    found, scale = asdict(score(sae, case.held, BLOCK)), case.run.result.scale
    # The error is at the store's scale, and the code at that of the SAE's drive.
    own = {"mse": found["mse"] * scale**2, "l1": found["l1"] * scale / sae.scale}
    return {**found, **own, "dead": sae.latents - found["dictionary"]}


def spliced(case: Case, after: SAE) -> dict[str, Any]:
    """Cross-entropy of the language model on the store's last sequences, nats a token: clean, and spliced in.

    Raises:
        UserError: the model cannot be loaded, or is not the store's.
    """
    assert case.store is not None
    store, (hook, record) = case.store, case.store.hook(case.run.result.hook)
    lm = origin.load(store, device="cpu")
    first = max(0, store.manifest.sequences - -(-EvaluateConfig().tokens // store.manifest.context))
    origin.check(lm, store, hook, next(store.chunks(hook, 4, first)))
    pad = store.manifest.tokenizer.get("pad") if record.excluded.get("padding") else None
    losses = measure(lm, hook, store.chunks(hook, 4, first), {"before": case.sae, "after": after}, pad)
    replaced = {name: loss.cross_entropy for name, loss in losses.replaced.items()}
    return {"tokens": losses.tokens, "clean": losses.clean.cross_entropy, **replaced}


def contexts(
    case: Case, after: SAE, latents: Sequence[int], source: tuple[Subject, int] | None, console: Console | None
) -> list[dict[str, Any]]:
    """The strongest contexts in the store of the latents that were edited, and of the one whose direction was written.

    Args:
        case, after: the SAE before and after.
        latents: those that were edited.
        source: the latent whose direction was written, and its SAE.
        console: where to show the building of an index.

    Returns:
        of each, which latents are nearest to it, and in each context the edited latent before and after, and which
        others fire there now.
    """
    own = open_subject(str(case.run.folder), case.row.setup, case.row.seed)
    found = []
    asked = [(own, latent, latent) for latent in latents[:SHOWN]] + ([(*source, latents[0])] if source else [])
    for subject, of, latent in asked:
        evidence, pieces = open_index(subject, console).latent(of), Pieces(subject.tokenizer)
        store, places = Store(subject.folder), []
        for context in evidence.top[:CONTEXTS]:
            chunk = next(store.chunks(subject.hook, 1, context.sequence, context.sequence + 1))
            x = chunk.activations[0, context.position][None]
            old, new = case.sae.encode(x)[0], after.encode(x)[0]
            firing = torch.arange(len(new)) != latent
            order = (new * firing).argsort(descending=True)[: min(NEAR, int(((new > 0) & firing).sum()))]
            said = {"text": pieces(context.tokens), "activations": context.activations, "peak": context.peak}
            now = {"others": order.tolist(), "newly": int(((new > 0) & (old <= 0) & firing).sum())}
            places.append({**said, "before": float(old[latent]), "after": float(new[latent]), **now})
        near = [(each.latent, each.cosine) for each in evidence.near[:NEAR]]
        whose = f"latent {of} of {subject.record.name}, {subject.row.setup}"
        found.append({"of": whose, "latent": latent, "rate": evidence.rate, "near": near, "contexts": places})
    return found
