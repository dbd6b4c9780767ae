"""One operation from the command line on a Hopfield layer's matrix or on a language model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import cosine_similarity as cosine

from hsae.errors import UserError
from hsae.figures import percent
from hsae.files import cache_root
from hsae.lab.surgery import SurgeryConfig
from hsae.lab.surgery.certificate import Certificate, Protocol, difference
from hsae.lab.surgery.hopfield import Hopfield, random_memories
from hsae.lab.surgery.ledger import read_tensor, save_edit, with_edit, without_edit, write_bytes
from hsae.lab.surgery.memory import Association, Target
from hsae.lab.surgery.show import show, show_survey, show_verdict
from hsae.lab.surgery.surgeon import Surgeon
from hsae.lab.surgery.transformer import Transformer
from hsae.progress import say

if TYPE_CHECKING:
    from rich.console import Console

DEPENDENT = 0.4
"""basins whose cosine with a target is above this are not protected: they are mixtures of it"""


def protocol_of(settings: SurgeryConfig) -> Protocol:
    """How settings say that associations are verified."""
    return Protocol(settings.seed or 0, settings.trials, settings.threshold, settings.noise, settings.convention)


def operate(settings: SurgeryConfig, console: Console) -> None:
    """Do what `settings.operation` says, and print it.

    Raises:
        UserError: a file, key, layer, prompt or target that is not as wanted.
    """
    if settings.memory != "hopfield":
        _transformer(settings, console)
    else:
        {"undo": _undo, "diff": _diff}.get(settings.operation, _hopfield)(settings, console)


def edit(
    surgeon: Surgeon, settings: SurgeryConfig, target: Target, to: Target | None, protect: Sequence[Target]
) -> Certificate:
    """One of the five edits."""
    if settings.operation in ("strengthen", "weaken"):
        return getattr(surgeon, settings.operation)(target, settings.factor, protect=protect)
    both = (target,) if to is None else (target, to)
    return getattr(surgeon, settings.operation)(
        *both, strength=settings.amount, protect=protect, anchor=settings.anchor, form=settings.form
    )


def _hopfield(settings: SurgeryConfig, console: Console) -> None:
    seed = 1009 * (settings.seed or 0)
    if settings.matrix:
        path, key, W = read_tensor(settings.matrix, 2)
        raw = path.read_bytes()
        memory = Hopfield(W, settings.degree, settings.beta, f"{path}:{key}")
    else:
        made = random_memories(settings.memories, settings.dim, torch.Generator().manual_seed(seed))
        memory, path, key = Hopfield.made(made, settings.degree, settings.beta), Path(), "W"
        raw = save(memory.weights)
    surgeon, generator = Surgeon(memory, protocol_of(settings)), torch.Generator().manual_seed(seed + 7)
    basins = surgeon.survey()

    def pattern(words: str) -> Tensor:
        if words == "random":
            return random_memories(1, len(memory.W), generator)[0]
        if not words.isdigit():
            return read_tensor(words, 1)[2].double()
        if int(words) >= len(basins.patterns):
            raise UserError(f"{memory.name}: no basin {words}; a survey finds 0…{len(basins.patterns) - 1}")
        return basins.patterns[int(words)]

    if settings.operation == "survey":
        show_survey(basins, console, settings.json)
        return
    target = pattern(settings.target or ("random" if settings.operation == "inject" else "0"))
    if settings.operation == "verify":
        show_verdict(surgeon.verify(memory.storable(memory.scaled(target))), console, settings.json)
        return
    to = pattern(settings.destination or "random") if settings.operation == "move" else None
    protect: list[Tensor] = []
    if settings.protect:
        apart = [cosine(basins.patterns, t[None]).abs() for t in (target, to) if t is not None]
        near = torch.stack(apart).amax(0) > DEPENDENT
        protect = [p for i, p in enumerate(basins.patterns) if not near[i] and not -1 < basins.mirror[i] < i]
        # More would leave no direction to write in.
        protect = protect[: len(memory.W) // 4]
    certificate = edit(surgeon, settings, target, to, protect)
    show(certificate, console, settings.json)
    if certificate.restored or not (settings.matrix or settings.save):
        return
    out = Path(settings.save or path.with_name(f"{path.stem}-{settings.operation}.safetensors"))
    if out.exists():
        raise UserError(f"{out} is there already, and is not overwritten; name another file with --save")
    write_bytes(out, with_edit(raw, key, memory.W, certificate))
    _tell(settings, console, f"wrote {out}; undo: hsae lab surgery undo --matrix {out}")


def _undo(settings: SurgeryConfig, console: Console) -> None:
    if not settings.matrix:
        raise UserError("undo: name the edited file with --matrix")
    path, _, _ = read_tensor(settings.matrix, 2)
    if (found := without_edit(path.read_bytes())) is None:
        raise UserError(f"{path}: no edit to undo")
    raw, note = found
    out = Path(settings.save or path)
    write_bytes(out, raw)
    was = note["certificate"]
    if settings.json:
        console.file.write(json.dumps(was, indent=1) + "\n")
    _tell(settings, console, f"{out}: {was['operation']} of {percent(was['norm'])} taken back, byte for byte")


def _transformer(settings: SurgeryConfig, console: Console) -> None:
    from hsae.loading import load_lm

    if settings.operation in ("survey", "diff", "undo"):
        raise UserError(
            f"{settings.operation} is for a Hopfield layer's matrix or a run; an edit of a language model is a file of "
            "its own, which the model's files know nothing of (diff: its certificate; undo: delete it)"
        )
    lm = load_lm(settings.model, settings.device)
    kind = settings.circuit if settings.memory == "attention" else "mlp"
    memory = Transformer(lm, kind, settings.layer, settings.head, settings.rule, settings.prompt)
    cue = memory.cue(settings.prompt)

    def recalled(prompt: str) -> Association:
        there = memory.cue(prompt)
        return Association(there, memory.recall(there[None])[0])

    target = recalled(settings.prompt)
    if kind == "qk":
        memory.watch, target = settings.position, Association(cue, memory.key(settings.position))
    elif settings.value_prompt:
        target = Association(cue, recalled(settings.value_prompt).value)
    elif settings.token:
        memory.watch, target = memory.token_id(settings.token), Association(cue, memory.raising(cue, settings.token))
    elif settings.operation == "inject":
        raise UserError("inject: say what the prompt is to recall, with --token or --value-prompt")
    to = None
    if settings.operation == "move":
        if not settings.destination or kind == "qk":
            raise UserError("move (of mlp, or attention's ov): name the prompt to move to with --destination")
        to = Association(memory.cue(settings.destination), target.value)
    surgeon, before = Surgeon(memory, protocol_of(settings)), memory.W.clone()
    if settings.operation == "verify":
        show_verdict(surgeon.verify(target), console, settings.json)
        return
    certificate = edit(surgeon, settings, target, to, [recalled(prompt) for prompt in settings.protect_prompts])
    show(certificate, console, settings.json)
    if not certificate.restored:
        name = f"{Path(lm.name).name}-{memory.place}-{settings.operation}.safetensors"
        out = Path(settings.save or cache_root() / "lab" / "edits" / name)
        save_edit(out, memory, before, certificate)
        _tell(settings, console, f"wrote {out}; use: hsae.lab.surgery.ledger.apply_edit(lm, path)")


def _diff(settings: SurgeryConfig, console: Console) -> None:
    if not settings.matrix:
        raise UserError("diff: name the matrix with --matrix FILE.safetensors")
    path, key, W = read_tensor(settings.matrix, 2)
    if not settings.against and without_edit(path.read_bytes()) is None:
        raise UserError(f"{path}: not edited; name the matrix to compare it with, --against FILE.safetensors:KEY")
    found = difference(read_tensor(settings.against or f"{path}:{key}@before", 2)[2], W)
    if settings.json:
        console.file.write(json.dumps(asdict(found), indent=1) + "\n")
    else:
        say(console, f"rank {found.rank}, ‖ΔW‖/‖W‖ {percent(found.norm)}; ‖W‖ itself grew by {100 * found.growth:.2f}%")


def _tell(settings: SurgeryConfig, console: Console, line: str) -> None:
    """Say something that is not the result: with --json on stderr."""
    if settings.json:
        from rich.console import Console

        console = Console(stderr=True)
    say(console, line)
