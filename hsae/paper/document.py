"""The report's numbers: as JSON, and the main table for the terminal."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from hsae.intervals import Estimate
from hsae.paper import PaperConfig
from hsae.paper.answers import answers
from hsae.paper.claims import number, orderings
from hsae.paper.findings import AblationPart, Findings, InitPart, TablePart
from hsae.paper.measure import MEASURED, curve
from hsae.paper.published import METRICS, SETUPS, TABLE_1, TITLES
from hsae.paper.report import Source, command
from hsae.paper.tables import HEADS


def document(settings: PaperConfig, source: Source, found: Findings) -> dict[str, Any]:
    """All numbers, for `report.json`."""
    parts = {"table": found.table, "ablation": found.ablation, "init": found.init}
    return {
        "version": 1,
        "command": command(settings),
        "settings": dataclasses.asdict(settings),
        "source": dataclasses.asdict(source) | {"is_the_papers": source.is_the_papers},
        "held_out": dataclasses.asdict(found.rows),
        "paper": {setup: dataclasses.asdict(line) for setup, line in TABLE_1.items()},
        **{name: _numbers(part) for name, part in parts.items() if part is not None},
        "answers": dict(answers(found)),
        "latents": None
        if found.latents is None
        else {setup: [dataclasses.asdict(x) for x in latents] for setup, latents in found.latents.items()},
    }


def _numbers(part: TablePart | AblationPart | InitPart) -> dict[str, Any]:
    trained = part.trained
    of_part = {
        field.name: _plain(getattr(part, field.name)) for field in dataclasses.fields(part) if field.name != "trained"
    }
    curves = {arm.name: {m: _plain(curve(trained.logged, arm.name, m)) for m in MEASURED} for arm in trained.arms}
    claims = orderings(trained.means(), trained.by_seed()) if isinstance(part, TablePart) else ()
    return of_part | {
        "run": str(trained.run.folder),
        "steps": trained.steps,
        "batch_tokens": trained.settings.batch_tokens,
        "seeds": trained.settings.seeds,
        "setups": {arm.name: dataclasses.asdict(arm) for arm in trained.arms},
        "lines": {name: dataclasses.asdict(line) for name, line in trained.lines.items()},
        "orderings": [dataclasses.asdict(claim) | {"verdict": claim.verdict} for claim in claims],
        "curves": curves,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def lines_for_terminal(part: TablePart) -> Iterator[tuple[str, ...]]:
    """The main table for 80 columns: the paper's line, ours on held-out tokens, and the interval's half width."""
    for setup in SETUPS:
        line = part.trained.lines[setup]
        paper = TABLE_1[setup]
        yield (TITLES[setup], "paper", *(number(m, paper.mean(m)) if m in METRICS else "–" for m in HEADS))
        if len(line.diverged) == len(line.seeds):
            yield ("", "diverged", *("–" for _ in HEADS))
            continue
        yield ("", "ours", *(number(m, line.mean(m)) for m in HEADS))
        if any(s is not None and s.std is not None for s in line.held_out.values()):
            yield ("", "± 95%", *(_reach(m, line.held_out[m]) for m in HEADS))


def _reach(metric: str, found: Estimate | None) -> str:
    return "" if found is None or found.half is None else number(metric, found.half)
