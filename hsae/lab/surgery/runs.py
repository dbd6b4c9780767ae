"""Surgery on a run: an edit of one of its SAEs makes a new run, with a certificate and what an exact inverse needs."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hsae import config
from hsae.errors import UserError, one_line
from hsae.export._files import whole_folder, write_json, write_tensors
from hsae.files import cache_root
from hsae.lab.surgery import SurgeryConfig
from hsae.lab.surgery.case import Case, Target, latents_of, open_case, target_of
from hsae.lab.surgery.latents import empty, inverse, removed, restored, turned, weighted, without_directions, written
from hsae.lab.surgery.looks import as_json, diff, protocol_of, show, survey, verify
from hsae.lab.surgery.outcome import changes, contexts, metrics, spliced, verified
from hsae.lab.surgery.surgeon import Surgeon
from hsae.lists import named
from hsae.plain import finite
from hsae.progress import say
from hsae.record import CONFIG, RESULT, Result, Row
from hsae.run import Run, RunWriter
from hsae.sae import SAE

if TYPE_CHECKING:
    from rich.console import Console

RECORD, ROWS = "surgery.json", "surgery.safetensors"
DONE = {
    "remove": "removed",
    "weaken": "weakened",
    "strengthen": "strengthened",
    "inject": "overwritten with",
    "move": "moved to",
}


@dataclass(frozen=True)
class Edit:
    """What is asked for: latents, and of inject and move a target. `what` tells one edit of an SAE from another."""

    what: dict[str, Any]
    latents: tuple[int, ...]
    target: Target | None

    @property
    def words(self) -> str:
        """What is done, in words."""
        dense, factor = self.what["how"] == "dense", self.what["factor"]
        if dense and self.target is not None:
            return f"{self.target.words} written into all latents at once"
        more = f" by a factor of {factor:g}" if factor else ""
        if dense:
            more = " and its direction taken out of all others"
        target = "" if self.target is None else f" {self.target.words}"
        return f"{named(self.latents)} {DONE[self.what['operation']]}{more}{target}"


def operate(settings: SurgeryConfig, console: Console) -> None:
    """Do one operation on a run.

    Args:
        settings: `operation`, `run`, and what the operation needs.
        console: where to print; progress goes to the standard error.

    Raises:
        UserError: an operation, run, setup, seed, latent or target that is not there, or a name that is taken.
    """
    others: dict[str, Callable[[SurgeryConfig, Console], None]]
    others = {"verify": verify, "survey": survey, "diff": diff, "undo": undo}
    known = {**dict.fromkeys(DONE, edit), **others}
    if settings.operation not in known:
        raise UserError(f"lab surgery: say what to do to run {settings.run}: {', '.join(known)}")
    known[settings.operation](settings, console)


def edit(settings: SurgeryConfig, console: Console) -> None:
    """Make a new run by an edit, measure it, and print what changed; or find it there. Raises as `operate`."""
    from rich.console import Console

    case = open_case(settings.run, settings.setup, settings.seed)
    asked, protocol = _asked(settings, case), protocol_of(settings)
    parent = {"run": case.run.name, "setup": case.row.setup, "seed": case.row.seed}
    parent["fingerprint"] = case.run.fingerprint(case.row)
    key = config.fingerprint([asked.what, parent["fingerprint"], dataclasses.asdict(protocol)])
    folder = _folder(settings.name or f"{case.run.name}-surgery-{key}")
    if (kept := _edits(folder)) and kept[-1]["key"] == key:
        show(settings, {**kept[-1], "there": True}, folder, console)
        return
    _require_free(folder)
    after, patterns = _performed(settings, case, asked)
    report: dict[str, Any] = {
        "key": key,
        "words": asked.words,
        **{name: value for name, value in asked.what.items() if name != "direction"},
        "parent": parent | {"result": dataclasses.asdict(replace(case.run.result, rows=(case.row,)))},
        "protocol": dataclasses.asdict(protocol),
        "changes": changes(case.sae, after),
        "verified": verified(case, after, asked.latents, patterns, protocol),
        "metrics": None,
        "language_model": None,
        "contexts": [],
        "notes": [note for note in (case.note, asked.target and asked.target.note) if note],
    }
    if case.held is not None:
        both = {when: metrics(case, sae) for when, sae in (("before", case.sae), ("after", after))}
        report["metrics"] = {"tokens": len(case.held), **both}
        subject = None if asked.target is None else asked.target.subject
        measures = {
            "contexts": lambda: contexts(case, after, asked.latents, subject, Console(stderr=True)),
            "language_model": lambda: spliced(case, after),
        }
        for name, measure in measures.items():
            try:
                report[name] = measure()
            except UserError as error:
                report["notes"].append(f"{name.replace('_', ' ')}: not measured ({error})")
    _write(case, after, finite(report), folder)
    show(settings, report, folder, console)


def _asked(settings: SurgeryConfig, case: Case) -> Edit:
    """What the settings ask for, checked."""
    operation, dense, latents = settings.operation, settings.how == "dense", latents_of(settings, case)
    if dense and operation not in ("inject", "remove"):
        raise UserError(f"lab surgery: --how dense is for inject and remove, not for {operation}")
    if settings.strength != "auto" and not (dense and operation == "inject"):
        raise UserError("lab surgery: on a run --strength is for inject --how dense; for weaken, strengthen: --factor")
    factor = settings.factor if operation in ("weaken", "strengthen") else None
    what = {"operation": operation, "how": settings.how, "factor": factor, "strength": settings.amount}
    if operation not in ("inject", "move"):
        if not latents:
            raise UserError(f"lab surgery: say which latents to {operation}: --latent 27,30-35")
        if gone := [latent for latent in latents if empty(case.sae)[latent]]:
            raise UserError(f"{named(gone)} of {case.words}: removed already, nothing is left of it")
        return Edit({**what, "latents": list(latents)}, latents, None)
    target = target_of(settings, case)
    if not latents and operation == "inject":
        used = case.firings()
        if used is None:
            raise UserError(f"{case.note}, nor which latent is least used: name one with --latent")
        memory = case.memory(case.sae, firings=used)
        latents = (memory.nearest(target.direction) if dense else memory.least_used(),)
    if len(latents) != 1:
        raise UserError(f"lab surgery: {operation} wants one latent: --latent 27")
    return Edit({**what, "latents": list(latents), "direction": target.direction.tolist()}, latents, target)


def _performed(settings: SurgeryConfig, case: Case, asked: Edit) -> tuple[SAE, dict[str, Tensor]]:
    """The SAE after an edit, and the patterns that it is about, [pattern, width]."""
    sae, latents, used = case.sae, asked.latents, case.firings()
    old = {named(latents): sae.W_dec[list(latents)]}
    if asked.target is None:
        if settings.operation == "remove":
            return (without_directions if settings.how == "dense" else removed)(sae, latents), old
        factor = settings.factor if settings.operation == "strengthen" else 1 / settings.factor
        return weighted(sae, latents, factor), old
    memory, direction = case.memory(sae, firings=used, dense=True), asked.target.direction
    new = {"the target": memory.scaled(direction)[None]}
    if settings.operation == "move":
        return turned(sae, latents[0], direction), old | new
    if settings.how == "overwrite":
        counts = (used > 0) if used is not None and bool((used > 0).any()) else ~empty(sae)
        return written(sae, latents[0], direction, counts), old | new
    made = Surgeon(memory, protocol_of(settings)).inject(direction, strength=settings.amount)
    if made.restored:
        raise UserError(f"{asked.target.words} could not be injected into {case.words}: {'; '.join(made.notes)}")
    return memory.sae, new


def _write(case: Case, after: SAE, report: dict[str, Any], target: Path) -> None:
    """The new run: the edited SAE alone, measured anew, with all edits that led to it and their inverses."""
    result, row = case.run.result, Row(case.row.setup, case.row.seed)
    origin = f"{case.words}, with {report['words']} (hsae lab surgery)"
    result = replace(result, rows=(row,), baselines=(), held_out=0, origin=origin)
    if case.store is not None and case.held is not None:
        values = report["metrics"]["after"]
        names = {f.name for f in dataclasses.fields(Row)} - {"dead"}  # which is of the training
        row = replace(row, **{name: value for name, value in values.items() if name in names})
        same = case.store.manifest.fingerprint == case.run.result.store_fingerprint
        baselines = case.run.result.baselines if same and len(case.held) == case.run.result.held_out else ()
        made = {"store_fingerprint": case.store.manifest.fingerprint, "held_out": len(case.held)}
        result = replace(result, rows=(row,), baselines=baselines, **made)
    edits, rows = _edits(case.run.folder), _rows(case.run.folder)
    rows |= {f"{len(edits)}/{name}": tensor for name, tensor in inverse(case.sae, after).items()}
    _make(case.run, after, result, [*edits, report], rows, target)


def _make(
    run: Run,
    sae: SAE,
    result: Result,
    edits: Sequence[Any],
    rows: Mapping[str, Tensor],
    target: Path,
    fingerprint: str = "",
) -> None:
    """Write a run of one SAE, whole or not at all, with the edits that led to it; check its fingerprint, if given."""
    row = result.rows[0]
    train = config.read_file(run.folder / CONFIG, "train")
    train |= {"setups": [row.setup], "seeds": [row.seed], "setup": {row.setup: run.tables[row.setup]}}
    with whole_folder(target) as aside:
        if edits:
            write_json(aside / RECORD, {"edits": list(edits)})
            write_tensors(aside / ROWS, rows)
        made = RunWriter(aside, {**train, "name": target.name}).finish({(row.setup, row.seed): sae}, result)
        if fingerprint and made.fingerprint(row) != fingerprint:
            raise UserError(f"{run.folder / ROWS}: not what was taken from run {run.name}; nothing was written")


def undo(settings: SurgeryConfig, console: Console) -> None:
    """A run with the SAE before a run's last edit, bit for bit, from what the run itself holds. Raises as `operate`."""
    run = Run.open(settings.run)
    row = run.row(settings.setup, settings.seed)
    edits, rows = _edits(run.folder), _rows(run.folder)
    if not edits:
        raise UserError(f"run {run.name}: no surgery to undo (it has no {RECORD})")
    last, prefix = edits[-1]["parent"], f"{len(edits) - 1}/"
    target = _folder(settings.name or f"{last['run']}-restored-{last['fingerprint'][:8]}")
    there = (target / RESULT).exists() and Run(target).fingerprint(Run(target).row()) == last["fingerprint"]
    if not there:
        _require_free(target)
        own = {name.removeprefix(prefix): tensor for name, tensor in rows.items() if name.startswith(prefix)}
        try:
            sae = restored(run.sae(row.setup, row.seed), own)
        except (KeyError, IndexError, RuntimeError) as error:
            raise UserError(f"{run.folder / ROWS}: damaged ({one_line(error)})") from None
        result = config.build(Result, last["result"], str(run.folder / RECORD))
        origin = f"{last['setup']}, seed {last['seed']}, of run {last['run']}, by undoing run {run.name}"
        kept = {name: tensor for name, tensor in rows.items() if not name.startswith(prefix)}
        _make(run, sae, replace(result, origin=origin), edits[:-1], kept, target, last["fingerprint"])
    report = {"operation": "undo", "name": target.name, "parent": {k: v for k, v in last.items() if k != "result"}}
    if settings.json:
        as_json(report, console)
        return
    same = f"bit for bit {last['setup']}, seed {last['seed']}, of run {last['run']} (fingerprint {last['fingerprint']})"
    say(console, f"{target}: {'is there already, ' if there else ''}{same}")
    say(console, f"undone: {edits[-1]['words']}")


def _folder(name: str) -> Path:
    home = cache_root() / "runs"
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise UserError(f"--name {name!r}: use letters, digits and . + - _")
    return home / name


def _require_free(target: Path) -> None:
    """Refuse a name that is taken, before anything is measured."""
    if target.exists():
        raise UserError(f"{target}: is there already; give another --name, or delete it")


def _edits(folder: Path) -> list[dict[str, Any]]:
    """The edits that led to a run; none for one that was trained."""
    try:
        edits = json.loads((folder / RECORD).read_text(encoding="utf-8"))["edits"]
        return [each for each in edits if each["key"] and each["parent"]["result"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / RECORD}: damaged or unreadable ({error})") from None


def _rows(folder: Path) -> dict[str, Tensor]:
    if not (folder / RECORD).exists():
        return {}
    try:
        return load_file(folder / ROWS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / ROWS}: missing or damaged ({error}); without it nothing can be undone") from None
