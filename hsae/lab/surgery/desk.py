"""One operation from the command line on a Hopfield layer's matrix or on a language model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity as cosine

from hsae.errors import UserError
from hsae.figures import percent
from hsae.files import cache_root
from hsae.lab.surgery import SurgeryConfig
from hsae.lab.surgery.certificate import Protocol, difference
from hsae.lab.surgery.hopfield import Hopfield, random_memories
from hsae.lab.surgery.ledger import MODEL, Ledger, read_tensor
from hsae.lab.surgery.memory import Association, Target
from hsae.lab.surgery.show import show
from hsae.lab.surgery.surgeon import How, Surgeon
from hsae.lab.surgery.transformer import Kind, Transformer
from hsae.progress import say

if TYPE_CHECKING:
    from rich.console import Console

DEPENDENT = 0.4
"""basins whose cosine with a target is above this are not protected: they are mixtures of it"""


@dataclass(frozen=True)
class _Task:
    """What is operated on, and where an edit goes: `out`, a file as `ledger` holds it, with another matrix `key`."""

    surgeon: Surgeon
    targets: Sequence[Target]
    protect: Sequence[Target]
    ledger: Ledger
    key: str
    out: Path | None


def operate(settings: SurgeryConfig, console: Console) -> None:
    """Do what `settings.operation` says, and print it.

    Raises:
        UserError: a file, key, layer, prompt or target that is not as wanted.
    """
    if settings.operation in ("diff", "undo"):
        _edited(settings, console)
        return
    task = _hopfield(settings) if settings.memory == "hopfield" else _transformer(settings, settings.memory)
    surgeon, memory, target = task.surgeon, task.surgeon.memory, task.targets[0]
    if settings.operation == "survey":
        show(surgeon.survey(), console, settings.json)
    elif settings.operation == "verify":
        what = memory.storable(memory.scaled(target)) if isinstance(target, Tensor) else target
        show(surgeon.verify(what), console, settings.json)
    else:
        out = Path(settings.save) if settings.save else task.out
        if out and out.exists():
            raise UserError(f"{out} is there already, and is not overwritten; name another file with --save")
        edit = getattr(surgeon, settings.operation)
        if settings.operation in ("strengthen", "weaken"):
            made = edit(*task.targets, settings.factor, protect=task.protect)
        else:
            how = How(strength=settings.amount, protect=task.protect, anchor=settings.anchor, form=settings.form)
            made = edit(*task.targets, **how)
        show(made, console, settings.json)
        if out and not made.restored:
            task.ledger.edit(task.key, memory.weights[memory.matrix], made)
            task.ledger.save(out)
            use = "use: hsae.lab.surgery.ledger.apply_edit(lm, path)"
            undo = f"undo: hsae lab surgery undo --matrix {out}"
            _tell(settings, console, f"wrote {out}; {undo if settings.memory == 'hopfield' else use}")


def _hopfield(settings: SurgeryConfig) -> _Task:
    seed = 1009 * (settings.seed or 0)
    if settings.matrix:
        path, key, W = read_tensor(settings.matrix, 2)
        ledger, memory = Ledger.open(path), Hopfield(W, settings.degree, settings.beta, f"{path}:{key}")
    else:
        made = random_memories(settings.memories, settings.dim, torch.Generator().manual_seed(seed))
        memory, path, key = Hopfield.made(made, settings.degree, settings.beta), Path(), "W"
        ledger = Ledger({key: memory.W.clone()}, {}, [])
    surgeon, generator = Surgeon(memory, _protocol(settings)), torch.Generator().manual_seed(seed + 7)
    basins = surgeon.survey()

    def pattern(words: str) -> Tensor:
        if words == "random":
            return random_memories(1, len(memory.W), generator)[0]
        if not words.isdigit():
            return memory.scaled(read_tensor(words, 1)[2])
        if int(words) >= len(basins.patterns):
            raise UserError(f"{memory.name}: no basin {words}; a survey finds 0…{len(basins.patterns) - 1}")
        return basins.patterns[int(words)]

    targets = [pattern(settings.target or ("random" if settings.operation in ("inject", "survey") else "0"))]
    if settings.operation == "move":
        targets.append(pattern(settings.destination or "random"))
    protect: list[Tensor] = []
    if settings.protect:
        near = torch.stack([cosine(basins.patterns, t[None]).abs() for t in targets]).amax(0) > DEPENDENT
        protect = [p for i, p in enumerate(basins.patterns) if not near[i] and not -1 < basins.mirror[i] < i]
        # More would leave no direction to write in.
        protect = protect[: len(memory.W) // 4]
    out = path.with_name(f"{path.stem}-{settings.operation}.safetensors") if settings.matrix else None
    return _Task(surgeon, targets, protect, ledger, key, out)


def _transformer(settings: SurgeryConfig, kind: Kind) -> _Task:
    from hsae.loading import load_lm

    lm = load_lm(settings.model, settings.device)
    memory = Transformer(lm, kind, settings.layer, settings.head, settings.rule, settings.prompt)
    target = memory.recalled(settings.prompt)
    if kind == "qk":
        memory.watch, target = settings.position, Association(target.cue, memory.key(settings.position))
    elif settings.token:
        value = memory.raising(target.cue, settings.token)
        memory.watch, target = memory.token_id(settings.token), Association(target.cue, value)
    elif settings.operation == "inject":
        raise UserError("inject: say what the prompt is to recall, with --token")
    targets = [target]
    if settings.operation == "move":
        if not settings.destination or kind == "qk":
            raise UserError("move (of mlp, or ov): name the prompt to move to with --destination")
        targets.append(Association(memory.cue(settings.destination), target.value))
    where = {"kind": kind, "layer": settings.layer, "head": settings.head}
    ledger = Ledger({"W": memory.W.clone()}, {MODEL: json.dumps(where)}, [])
    out = cache_root() / "lab" / "edits" / f"{Path(lm.name).name}-{memory.place}-{settings.operation}.safetensors"
    protect = [memory.recalled(prompt) for prompt in settings.protect_prompts]
    return _Task(Surgeon(memory, _protocol(settings)), targets, protect, ledger, "W", out)


def _edited(settings: SurgeryConfig, console: Console) -> None:
    """diff, undo: of the last edit of a file."""
    if not settings.matrix:
        raise UserError(f"{settings.operation}: name the edited file with --matrix")
    path = Path(settings.matrix)
    ledger = Ledger.open(path)
    if not ledger.edits:
        raise UserError(f"{path}: no edit to {settings.operation}")
    edited, before, made = ledger.undo()
    if settings.operation == "diff":
        show(difference(before, edited), console, settings.json)
        return
    out = Path(settings.save or path)
    ledger.save(out)
    _tell(settings, console, f"{out}: {made['operation']} of {percent(made['norm'])} taken back, bit for bit")


def _protocol(settings: SurgeryConfig) -> Protocol:
    return Protocol(settings.seed or 0, settings.trials, settings.threshold, settings.noise, settings.convention)


def _tell(settings: SurgeryConfig, console: Console, line: str) -> None:
    """Say something that is not the result: with --json on stderr."""
    from hsae.terminal import Terminal

    say(Terminal(stderr=True) if settings.json else console, line)
