"""Everything of a run: the result, the settings, the weights of every SAE, the metrics, and the indexes of evidence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hsae.errors import UserError
from hsae.evidence.file import Arrays
from hsae.record import CHECKPOINT, CONFIG, METRICS, RESULT, WEIGHTS, Record
from hsae.run import Run, check_checkpoint, check_metrics
from hsae.verify.finding import UNSEALED, Advance, Finding, bytes_in
from hsae.verify.places import Place

EVIDENCE = "evidence"


def check_run(place: Place, advance: Advance) -> Finding:
    """Everything of a run, finished or not."""
    folder = Path(place.folder)
    found = Finding(place, size=bytes_in(folder))
    if (folder / RESULT).exists():
        _check_finished(folder, found)
    else:
        _check_begun(folder, found)
    indexes = sorted((folder / EVIDENCE).glob("[!.]*.safetensors"))
    for path in indexes:
        found.holds(lambda path=path: Arrays(path).check(), path)
    if indexes:
        found.note += f", {len(indexes)} index{'' if len(indexes) == 1 else 'es'}"
    advance(found.size)
    return found


def _check_finished(folder: Path, found: Finding) -> None:
    # First without what depends on the library: then each file has its own line.
    opened: list[Record] = []
    if not found.holds(lambda: opened.append(Record(folder)), folder / RESULT):
        return
    record = opened[0]
    rows = record.result.rows
    found.note = f"{len(rows)} SAE{'' if len(rows) == 1 else 's'} of {record.result.latents:,} latents"
    if not record.sealed:
        found.note += f", {UNSEALED}"
    if (folder / METRICS).exists() or METRICS in record.result.files:
        found.holds(record.metrics, folder / METRICS)
    if found.holds(lambda: record.check_file(WEIGHTS), folder / WEIGHTS):
        runs: list[Run] = []
        if found.holds(lambda: runs.append(Run(folder)), folder / CONFIG):
            for row in rows:
                if not row.diverged:
                    found.holds(lambda row=row: runs[0].sae(row.setup, row.seed), folder / WEIGHTS)
    if (folder / CHECKPOINT).exists():
        found.holds(_without_need(lambda: check_checkpoint(folder / CHECKPOINT)), folder / CHECKPOINT)


def _without_need(check: Callable[[], Any]) -> Callable[[], None]:
    """A check of a file that a finished run has no use for."""

    def run() -> None:
        try:
            check()
        except UserError as error:
            raise UserError(f"{str(error).partition(';')[0]}; delete it, the run is finished") from None

    return run


def _check_begun(folder: Path, found: Finding) -> None:
    found.unfinished = True
    found.note = f"`hsae train {folder / CONFIG}` finishes it"
    if not (folder / CHECKPOINT).exists():
        return
    state: list[Any] = []
    if found.holds(lambda: state.append(check_checkpoint(folder / CHECKPOINT)), folder / CHECKPOINT):
        told, metrics = state[0]
        found.note = f"at step {told['step']:,}; {found.note}"
        found.holds(lambda: check_metrics(folder, told["step"], metrics), folder / METRICS)
