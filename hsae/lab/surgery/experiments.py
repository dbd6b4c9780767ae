"""The chapter's measurements, each a function of plain data to plain data."""

from __future__ import annotations

import hashlib
import math
import statistics
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hsae.lab.surgery import SurgeryConfig
from hsae.lab.surgery.certificate import Certificate, Convention, Protocol
from hsae.lab.surgery.hopfield import Hopfield, random_memories
from hsae.lab.surgery.memory import Association
from hsae.lab.surgery.surgeon import Surgeon
from hsae.lab.surgery.transformer import Kind, Rule, Transformer
from hsae.lm import LM

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
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(
        b"".join(f.read_bytes() for f in files if f.stem not in ("study", "tables", "show", "desk"))
    ).hexdigest()


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
    """Along the dynamics from random starts: the steps, those that raise each energy, and the energies' mean course."""
    found: dict[str, Any] = {"steps": 0, "raised": 0, "source_raised": 0, "course": [], "source_course": []}
    ends, starts = [], []
    for seed in seeds:
        memory, _, _ = _landscape(width, seed)
        path = list(memory.trajectory(memory.starts(8, torch.Generator().manual_seed(seed)).clamp(-0.99, 0.99)))
        for old, new in pairwise(path):
            moved = (old != new).any(1)
            found["steps"] += int(moved.sum())
            for name, energy in (("raised", memory.lyapunov), ("source_raised", memory.source_energy)):
                found[name] += int((moved & (energy(new) > energy(old) + 1e-9)).sum())
        for name, energy in (("course", memory.lyapunov), ("source_course", memory.source_energy)):
            found[name].append([float(energy(x).mean()) for x in (*path, *[path[-1]] * (40 - len(path)))][:40])
        ends.append([float(e(path[-1]).mean()) for e in (memory.lyapunov, memory.source_energy)])
        starts.append([float(e(path[0]).mean()) for e in (memory.lyapunov, memory.source_energy)])
    for name in ("course", "source_course"):
        found[name] = [statistics.fmean(values) for values in zip(*found[name], strict=True)]
    for name, values in (("basin", ends), ("start", starts)):
        found[name], found[f"source_{name}"] = (statistics.fmean(v) for v in zip(*values, strict=True))
    return found


def conventions(widths: list[int], seeds: list[int], code: str) -> dict[str, Any]:
    """Both noise conventions: ‖noise‖ / ‖target‖, the share of starts at stored memories that come back, and the
    smallest strength that makes a random target come back from all of them."""
    found: dict[str, Any] = {}
    for width in widths:
        found[str(width)] = {}
        sizes: dict[Convention, float] = {"norm": 0.1, "per-coordinate": 0.1 * math.sqrt(width)}
        for convention, size in sizes.items():
            rates, strengths = [], []
            for seed in seeds:
                memory, settled, target = _landscape(width, seed)
                surgeon = Surgeon(memory, Protocol(seed, convention=convention))
                rates += [surgeon.verify(pattern).rate for pattern in settled]
                strengths.append(surgeon.inject(target).strength[0] or None)
            found[str(width)][convention] = {"size": size, "rate": statistics.fmean(rates), "strength": strengths}
    return found


def operations(width: int, seeds: list[int], code: str) -> dict[str, Any]:
    """Each operation on made layers, every other memory protected; and a strength of 0.1, measured."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for seed in seeds:
        for name in ("inject", "remove", "move", "strengthen", "weaken", "inject at 0.1"):
            memory, settled, target = _landscape(width, seed)
            surgeon = Surgeon(memory, Protocol(seed))
            before, keep = memory.W.clone(), list(settled[1:])
            if name == "inject at 0.1":
                made = surgeon.inject(target, strength=0.1)
            elif name == "inject":
                made = surgeon.inject(target, protect=list(settled))
            elif name == "move":
                made = surgeon.move(settled[0], target, protect=keep)
            else:
                made = getattr(surgeon, name)(settled[0], protect=keep)
            row = summary(made) | {"growth": surgeon.diff().growth}
            if not made.restored:
                surgeon.undo()
            rows.setdefault(name, []).append(row | {"undone": bool(torch.equal(memory.W, before))})
    return rows


def summary(made: Certificate) -> dict[str, Any]:
    """What the tables need of a certificate."""
    kept = [(b.hits, a.hits) for b, a in zip(made.before.protected, made.after.protected, strict=True)]
    return {
        "achieved": made.achieved,
        "rank": made.rank,
        "norm": made.norm,
        "before": (made.before.origin or made.before.target).rate
        if made.operation == "move"
        else made.before.target.rate,
        "after": made.after.target.rate,
        "origin": None if made.after.origin is None else made.after.origin.rate,
        "cosine": made.after.target.cosine,
        "kept": None if not kept else sum(a for _, a in kept) / max(1, sum(b for b, _ in kept)),
        "moved": made.moved,
        "drift": made.drift,
        "support": (made.before.support, made.after.support),
        "measures": {name: (value, made.after.measures[name]) for name, value in made.before.measures.items()},
    }


def rules(layer: int, rule: Rule, prompts: int, protect: bool, code: str) -> list[dict[str, Any]]:
    """A prompt's last token is made to raise a word, in an MLP of the bundled model; other prompts are looked at."""
    lm, rows = _bundled(), []
    for prompt, token in zip(PROMPTS[:prompts], TOKENS, strict=False):
        memory = Transformer(lm, "mlp", layer, rule=rule, prompt=prompt)
        memory.watch = memory.token_id(token)
        cue = memory.cue(prompt)
        others = torch.stack([memory.cue(other) for other in OTHERS])
        there = memory.recall(others)
        keep = [Association(*pair) for pair in zip(others, there, strict=True)] if protect else []
        surgeon = Surgeon(memory)
        made = surgeon.inject(Association(cue, memory.raising(cue, token)), protect=keep)
        now = memory.recall(others)
        rows.append(summary(made) | {"others": float(((now - there).norm(dim=1) / there.norm(dim=1)).max())})
        if not made.restored:
            surgeon.undo()
    return rows


def heads(kind: Kind, layer: int, count: int, code: str) -> list[dict[str, Any]]:
    """Heads of the bundled model: what a head writes at a prompt's last token, or where it looks from there."""
    lm, rows = _bundled(), []
    for head in range(count):
        memory = Transformer(lm, kind, layer, head, "rome", PROMPTS[0])
        cue = memory.cue(PROMPTS[0])
        if kind == "qk":
            # The position whose key is longest: one inside the others' hull no query can single out.
            keys = torch.stack([memory.key(i) for i in range(len(memory.ids(PROMPTS[0])))])
            memory.watch = int(keys.norm(dim=1).argmax())
            value = memory.key(memory.watch)
        else:
            value = memory.recall(memory.cue(PROMPTS[1])[None])[0]
        surgeon = Surgeon(memory)
        rows.append(summary(surgeon.inject(Association(cue, value))) | {"head": head})
        if surgeon.certificates:
            surgeon.undo()
    return rows


def saes(scale: str, seed: int, code: str) -> dict[str, Any]:
    """The part on SAEs: its Markdown and its numbers."""
    from hsae.lab.surgery.sae_study import study

    text, numbers = study(SurgeryConfig(scale="tiny" if scale == "tiny" else "small", seed=seed))
    return {"text": text, "numbers": numbers}


@lru_cache(maxsize=1)
def _bundled() -> LM:
    from hsae.loading import load_lm

    return load_lm("bundled", "cpu")
