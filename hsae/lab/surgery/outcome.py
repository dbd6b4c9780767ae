"""What an edit did to a run's SAE: as a memory, to reconstruction and language model, in the latents' contexts."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from hsae import origin
from hsae.errors import UserError
from hsae.evaluate import EvaluateConfig
from hsae.evidence import open_index
from hsae.inspect.tokens import Pieces
from hsae.intervals import wilson
from hsae.lab.surgery.certificate import Protocol, Verdict, difference
from hsae.lab.surgery.edits import BLOCK, Case, Edit
from hsae.lab.surgery.latents import empty, per_latent
from hsae.lab.surgery.sae import SAEMemory
from hsae.lab.surgery.surgeon import Surgeon
from hsae.metrics import score
from hsae.record import Row
from hsae.sae import SAE
from hsae.splice import measure
from hsae.store import Store

if TYPE_CHECKING:
    from rich.console import Console

OTHERS, SHOWN, CONTEXTS, NEAR = 32, 3, 4, 4
"""other latents verified; latents whose contexts are looked at, how many of each, and others that fire there"""


def measured(case: Case, edit: Edit, protocol: Protocol, console: Console | None) -> dict[str, Any]:
    """All that is measured of an edit, as plain data. `console`: where to show progress."""
    return {
        "changes": changes(case.sae, edit.after),
        "verified": _verified(case, edit, protocol),
        "metrics": {"before": _metrics(case, case.sae), "after": _metrics(case, edit.after)},
        "language_model": _spliced(case, edit.after),
        "contexts": _contexts(case, edit, console),
    }


def changes(before: SAE, after: SAE) -> dict[str, dict[str, Any]]:
    """For each tensor that differs: in how many latents, rank(ΔW), ‖ΔW‖_F / ‖W‖_F, and how much ‖W‖_F grew."""
    found = {}
    for (name, old), new in zip(per_latent(before).items(), per_latent(after).values(), strict=True):
        old, new = (t.reshape(len(t), -1) for t in (old, new))
        if latents := int((old != new).any(1).sum()):
            found[name] = {"latents": latents, **asdict(difference(old, new))}
    return found


def _verified(case: Case, edit: Edit, protocol: Protocol) -> list[dict[str, Any]]:
    """Whether what was edited, and other latents in use, come back from noise, before and after (softmax reading: on
    the sphere hardly any row is a basin to begin with)."""
    order = case.firings.masked_fill(empty(case.sae), 0).argsort(descending=True, stable=True).tolist()
    others = [latent for latent in order if case.firings[latent] > 0 and latent not in edit.what["latents"]][:OTHERS]
    memories, found = [case.memory(sae) for sae in (case.sae, edit.after)], []
    for what, rows in {**edit.patterns, f"{len(others)} other latents": case.sae.W_dec[others]}.items():
        before, after = (asdict(pooled(memory, rows, protocol)) for memory in memories)
        energy = [float(memory.energy(rows).mean()) for memory in memories]
        found.append({"what": what, "before": before, "after": after, "energy": energy})
    return found


def pooled(memory: SAEMemory, patterns: Float[Tensor, "pattern width"], protocol: Protocol) -> Verdict:
    """Noisy starts at all of some patterns, taken together."""
    surgeon = Surgeon(memory, protocol)
    each = [surgeon.verify(pattern) for pattern in patterns]
    hits, trials = sum(v.hits for v in each), max(sum(v.trials for v in each), 1)
    return Verdict(hits, trials, *wilson(hits, trials), cosine=sum(v.cosine for v in each) / max(len(each), 1))


def _metrics(case: Case, sae: SAE) -> dict[str, Any]:
    """The columns of a `Row` that `hsae train` measures on held-out tokens, in the units of training."""
    found, scale = asdict(score(sae, case.held, BLOCK)), case.run.result.scale
    # The error is at the store's scale, and the code at that of the SAE's drive.
    found |= {"mse": found["mse"] * scale**2, "l1": found["l1"] * scale / sae.scale}
    return {field.name: found[field.name] for field in fields(Row) if field.name in found}


def _spliced(case: Case, after: SAE) -> dict[str, Any]:
    """Cross-entropy of the language model on the store's last sequences, nats a token: clean, before and after; or
    under `missing` why it was not measured: the model cannot be loaded, or is not the store's."""
    store, hook, record = Store(case.subject.folder), case.subject.hook, case.subject.hook_record
    first = max(0, store.manifest.sequences - -(-EvaluateConfig().tokens // store.manifest.context))
    try:
        lm = origin.load(store, device="cpu")
        origin.check(lm, store, hook, next(store.chunks(hook, 4, first)))
    except UserError as error:
        return {"missing": str(error)}
    pad = store.manifest.tokenizer.get("pad") if record.excluded.get("padding") else None
    losses = measure(lm, hook, store.chunks(hook, 4, first), {"before": case.sae, "after": after}, pad)
    replaced = {name: loss.cross_entropy for name, loss in losses.replaced.items()}
    return {"tokens": losses.tokens, "clean": losses.clean.cross_entropy, **replaced}


def _contexts(case: Case, edit: Edit, console: Console | None) -> list[dict[str, Any]]:
    """The strongest contexts in the store of the latents that were edited, and of the one whose direction was written:
    in each the edited latent before and after, and which others fire there most now."""
    found, asked = [], [(case, latent, latent) for latent in edit.what["latents"][:SHOWN]]
    for of, shown, latent in [*asked, *([(*edit.source, edit.what["latents"][0])] if edit.source else [])]:
        evidence, pieces = open_index(of.subject, console).latent(shown), Pieces(of.subject.tokenizer)
        store, places = Store(of.subject.folder), []
        for context in evidence.top[:CONTEXTS]:
            chunk = next(store.chunks(of.subject.hook, 1, context.sequence, context.sequence + 1))
            old, new = (sae.encode(chunk.activations[0, context.position][None])[0] for sae in (case.sae, edit.after))
            others = [i for i in new.argsort(descending=True).tolist() if new[i] > 0 and i != latent]
            said = {"text": pieces(context.tokens), "activations": context.activations, "peak": context.peak}
            places.append({**said, "before": float(old[latent]), "after": float(new[latent]), "others": others[:NEAR]})
        found.append(
            {"of": f"latent {shown} of {of.words}", "latent": latent, "rate": evidence.rate, "contexts": places}
        )
    return found
