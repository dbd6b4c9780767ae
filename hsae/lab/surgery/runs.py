"""Surgery on a run: an edit of one of its SAEs makes a new run, with a certificate and what an exact inverse needs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hsae import config
from hsae.errors import UserError, one_line, visible
from hsae.export._files import whole_folder, write_json, write_tensors
from hsae.files import cache_root
from hsae.lab.surgery import SurgeryConfig
from hsae.lab.surgery.edits import EDITS, Case, open_case, perform, protocol_of
from hsae.lab.surgery.latents import inverse, restored
from hsae.lab.surgery.looks import diff, drawn, survey, tell, verify
from hsae.lab.surgery.outcome import measured
from hsae.plain import finite
from hsae.record import CONFIG, Result, Row
from hsae.run import Run, RunWriter
from hsae.sae import SAE
from hsae.sharing import NAME

if TYPE_CHECKING:
    from rich.console import Console

RECORD, ROWS = "surgery.json", "surgery.safetensors"


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
    known = {**dict.fromkeys(EDITS, edit), **others}
    if settings.operation not in known:
        raise UserError(f"lab surgery: say what to do to run {settings.run}: {', '.join(known)}")
    known[settings.operation](settings, console)


def edit(settings: SurgeryConfig, console: Console) -> None:
    """Make a new run by an edit, measure it, and print what changed; or find it there. Raises as `operate`."""
    from hsae.terminal import Terminal

    case = open_case(settings.run, settings.setup, settings.seed)
    made, protocol, row = perform(settings, case), protocol_of(settings), case.subject.row
    parent: dict[str, Any] = {"run": case.run.name, "words": case.words, "fingerprint": case.run.fingerprint(row)}
    key = config.fingerprint([made.what, parent["fingerprint"], asdict(protocol)])
    folder = _folder(settings.name or f"{case.run.name}-surgery-{key}")
    there, _ = _history(folder)
    if there and there[-1]["key"] == key:
        report = there[-1]
    elif folder.exists():
        raise UserError(f"{folder}: is there already; give another --name, or delete it")
    else:
        parent["result"] = asdict(replace(case.run.result, rows=(row,)))
        report = {"key": key, "words": made.words, **made.what, "parent": parent, "protocol": asdict(protocol)}
        report = finite(report | measured(case, made, protocol, Terminal(stderr=True)))
        _write(case, made.after, report, folder)
    found = "is there already, " if there else ""
    head = Text(visible(f"{folder}: {found}{case.words}, with {report['words']}"), style="bold")
    then = f"next: hsae compare {case.run.name}:{row.setup}:{row.seed} {folder.name}"
    then += f"\nundo: hsae lab surgery undo --run {folder.name}"
    tell(settings, {"name": folder.name, **report}, console, head, *drawn(report, console), Text(then))


def _write(case: Case, after: SAE, report: dict[str, Any], target: Path) -> None:
    """The new run: the edited SAE alone, measured anew, with all edits that led to it and their inverses."""
    result, row = case.run.result, Row(case.subject.row.setup, case.subject.row.seed, **report["metrics"]["after"])
    over = {"store_fingerprint": case.subject.manifest.fingerprint, "held_out": len(case.held)}
    same = over == {name: getattr(result, name) for name in over}
    origin = f"{case.words}, with {report['words']} (hsae lab surgery)"
    result = replace(result, rows=(row,), baselines=result.baselines if same else (), origin=origin, **over)
    edits, rows = _history(case.run.folder)
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
    after, (edits, rows) = run.sae(settings.setup, settings.seed), _history(run.folder)
    if not edits:
        raise UserError(f"run {run.name}: no surgery to undo (it has no {RECORD})")
    parent, prefix = edits[-1]["parent"], f"{len(edits) - 1}/"
    fingerprint, of = parent["fingerprint"], parent["words"]
    target = _folder(settings.name or f"{parent['run']}-restored-{fingerprint[:8]}")
    own = {name.removeprefix(prefix): rows.pop(name) for name in list(rows) if name.startswith(prefix)}
    result = config.build(Result, parent.pop("result"), str(run.folder / RECORD))
    result = replace(result, origin=f"{of}, by undoing run {run.name}")
    try:
        before = restored(after, own)
    except (KeyError, IndexError, RuntimeError) as error:
        raise UserError(f"{run.folder / ROWS}: not rows of this run ({one_line(error)})") from None
    _make(run, before, result, edits[:-1], rows, target, fingerprint)
    told = f"{target}: bit for bit {of} (fingerprint {fingerprint}); undone: {edits[-1]['words']}"
    tell(settings, {"operation": "undo", "name": target.name, "parent": parent}, console, Text(visible(told)))


def _folder(name: str) -> Path:
    if not NAME.fullmatch(name):
        raise UserError(f"--name {name!r}: use letters, digits and . + - _")
    return cache_root() / "runs" / name


def _history(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """The edits that led to a run, and the rows that they replaced; none of one that was trained."""
    if not (folder / RECORD).exists():
        return [], {}
    try:
        return json.loads((folder / RECORD).read_text(encoding="utf-8"))["edits"], load_file(folder / ROWS)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"{folder}: {RECORD} or {ROWS} is missing or damaged ({one_line(error)})") from None
