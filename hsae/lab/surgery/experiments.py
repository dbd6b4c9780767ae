"""The chapter's measurements, each a function of plain data to plain data."""

from __future__ import annotations

import hashlib
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hsae.lab.surgery import SurgeryConfig
from hsae.lab.surgery.certificate import Certificate, Protocol
from hsae.lab.surgery.hopfield import Hopfield, random_memories
from hsae.lab.surgery.memory import Association
from hsae.lab.surgery.surgeon import Surgeon
from hsae.lab.surgery.transformer import Kind, Rule, Transformer

MEMORIES = 5
WAYS: dict[str, dict[str, Any]] = {
    "at the target": {},
    "at the target, projected": {"protect": True},
    "the source's": {"anchor": "basin", "form": "source"},
}
PROMPTS = (
    "Once upon a time there was a little",
    "Tom went to the park with his",
    "Lily saw a big red",
    "The sad boy had a",
)
OTHERS = ("She opened the door and saw a", "They played with the", "Mom said it was time for", "One day he found a")
TOKENS = (" dog", " cat", " bird", " ball")


def source() -> str:
    """Changes with the code that the measurements depend on."""
    files = (f for f in sorted(Path(__file__).parent.glob("*.py")) if f.stem not in ("study", "show", "desk"))
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()


def _landscape(width: int, seed: int) -> tuple[Hopfield, Tensor, Tensor]:
    """Random memories in a layer, where they settle, and a random target."""
    drawn = random_memories(MEMORIES + 1, width, torch.Generator().manual_seed(seed))
    memory = Hopfield.made(drawn[:MEMORIES])
    return memory, memory.recall(0.9 * drawn[:MEMORIES]), drawn[MEMORIES]


def writing(width: int, strengths: list[float], ways: list[str], seeds: list[int], code: str) -> dict[str, Any]:
    """Inject a random target into made layers: the share of noisy starts that come back to it, and to the memories."""
    found: dict[str, Any] = {way: {"hit": [], "kept": []} for way in ways}
    for way in ways:
        for strength in strengths:
            hit, kept = [], []
            for seed in seeds:
                memory, settled, target = _landscape(width, seed)
                surgeon, how = Surgeon(memory, Protocol(seed)), dict(WAYS[way])
                if how.pop("protect", False):
                    how["protect"] = list(settled)
                hit.append(surgeon.inject(target, strength=strength, **how).after.target.rate)
                kept.append(statistics.fmean(surgeon.verify(pattern).rate for pattern in settled))
            found[way]["hit"].append(hit)
            found[way]["kept"].append(kept)
    return found


def energies(width: int, seeds: list[int], code: str) -> dict[str, Any]:
    """Along the dynamics from random starts: the steps; of each energy, those that raise it, and its mean course."""
    found: dict[str, Any] = {"steps": 0, "right": {"raised": 0, "courses": []}, "source": {"raised": 0, "courses": []}}
    for seed in seeds:
        memory, _, _ = _landscape(width, seed)
        path = list(memory.trajectory(memory.starts(8, torch.Generator().manual_seed(seed)).clamp(-0.99, 0.99)))
        states = torch.stack([*path, *[path[-1]] * (101 - len(path))])
        moved = (states[1:] != states[:-1]).any(2)
        found["steps"] += int(moved.sum())
        for name, energy in (("right", memory.lyapunov), ("source", memory.source_energy)):
            E = energy(states.flatten(0, 1)).reshape(states.shape[:2])
            found[name]["raised"] += int((moved & (E[1:] > E[:-1] + 1e-9)).sum())
            found[name]["courses"].append(E.mean(1).tolist())
    for name in ("right", "source"):
        found[name]["course"] = [statistics.fmean(values) for values in zip(*found[name].pop("courses"), strict=True)]
    return found


def operations(width: int, seeds: list[int], code: str) -> dict[str, Any]:
    """Each operation on made layers, every other memory protected; and a strength of 0.1, measured."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for seed in seeds:
        for name in ("inject", "remove", "move", "strengthen", "weaken", "inject at 0.1"):
            memory, settled, target = _landscape(width, seed)
            surgeon, before, keep = Surgeon(memory, Protocol(seed)), memory.W.clone(), list(settled[1:])
            if name == "inject at 0.1":
                made = surgeon.inject(target, strength=0.1)
            elif name == "inject":
                made = surgeon.inject(target, protect=list(settled))
            elif name == "move":
                made = surgeon.move(settled[0], target, protect=keep)
            else:
                made = getattr(surgeon, name)(settled[0], protect=keep)
            row = _summary(made) | {"growth": surgeon.diff().growth}
            if not made.restored:
                surgeon.undo()
            rows.setdefault(name, []).append(row | {"undone": bool(torch.equal(memory.W, before))})
    return rows


def _summary(made: Certificate) -> dict[str, Any]:
    """What the tables need of a certificate; a move's `before` is at its source, `after` at its destination."""
    kept = [(b.hits, a.hits) for b, a in zip(made.before.protected, made.after.protected, strict=True)]
    return {
        "achieved": made.achieved,
        "rank": made.rank,
        "norm": made.norm,
        "before": (made.before.origin or made.before.target).rate,
        "after": made.after.target.rate,
        "kept": sum(a for _, a in kept) / max(1, sum(b for b, _ in kept)) if kept else None,
        "moved": made.moved,
        "drift": made.drift,
        "measures": {name: (value, made.after.measures[name]) for name, value in made.before.measures.items()},
    }


def language_model(kind: Kind, rule: Rule, layer: int, count: int, code: str) -> list[dict[str, Any]]:
    """Matrices of the bundled model: an MLP is made to raise a word after each of some prompts, while others are
    protected; each of some heads to write what it writes elsewhere (ov), or to look at one position (qk)."""
    from hsae.loading import load_lm

    lm, rows = load_lm("bundled", "cpu"), []
    for i in range(count):
        prompt, head = (PROMPTS[i], 0) if kind == "mlp" else (PROMPTS[0], i)
        memory, keep = Transformer(lm, kind, layer, head, rule, prompt), list[Association]()
        cue, value = memory.cue(prompt), memory.recalled(PROMPTS[1]).value
        if kind == "mlp":
            memory.watch, value = memory.token_id(TOKENS[i]), memory.raising(cue, TOKENS[i])
            keep = [memory.recalled(other) for other in OTHERS]
        elif kind == "qk":
            # The position whose key is longest: one inside the others' hull no query can single out.
            keys = [memory.key(position) for position in range(len(memory.ids(prompt)))]
            memory.watch, value = max(enumerate(keys), key=lambda each: float(each[1].norm()))
        surgeon = Surgeon(memory)
        made = surgeon.inject(Association(cue, value), protect=keep)
        now = [memory.recall(each.cue[None])[0] for each in keep]
        moved = [float((new - each.value).norm() / each.value.norm()) for new, each in zip(now, keep, strict=True)]
        rows.append(_summary(made) | {"others": max(moved, default=None)})
        if not made.restored:
            surgeon.undo()
    return rows


def saes(scale: str, seed: int, code: str) -> dict[str, Any]:
    """The part on SAEs: its Markdown and its numbers."""
    from hsae.lab.surgery.sae_study import study

    text, numbers = study(SurgeryConfig(scale="tiny" if scale == "tiny" else "small", seed=seed))
    return {"text": text, "numbers": numbers}
