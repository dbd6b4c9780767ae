"""How operations are shown in the terminal, or as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.text import Text
from torch import Tensor

from hsae.figures import NONE, figure, percent
from hsae.inspect.tables import open_table
from hsae.lab.surgery.certificate import Basins, Certificate, Difference, Reading, Verdict
from hsae.plain import finite
from hsae.progress import say

if TYPE_CHECKING:
    from rich.console import Console

SHOWN = 20
"""basins of a survey that are shown"""


def show(result: Certificate | Verdict | Basins | Difference, console: Console, as_json: bool = False) -> None:
    """Print what an operation found, for a reader or as JSON."""
    if as_json:
        data = {name: value.tolist() if isinstance(value, Tensor) else value for name, value in asdict(result).items()}
        console.file.write(json.dumps(finite(data), indent=1, allow_nan=False) + "\n")
    elif isinstance(result, Certificate):
        _certificate(result, console)
    elif isinstance(result, Basins):
        _survey(result, console)
    elif isinstance(result, Verdict):
        say(console, f"{came_back(result)} of noisy starts come back, mean cosine {result.cosine:.4f}")
    else:
        size = f"{percent(result.norm)}; ‖W‖ itself grew by {100 * result.growth:.2f}%"
        say(console, f"rank {result.rank}, ‖ΔW‖/‖W‖ {size}")


def _certificate(certificate: Certificate, console: Console) -> None:
    before, after = _lines(certificate.before), _lines(certificate.after)
    table = open_table((certificate.operation, False), ("before", True), ("after", True))
    for name in before:
        table.add_row(name, before[name], after[name])
    size = " + ".join(percent(s) for s in certificate.strength) + (", found by search" if certificate.auto else "")
    say(console, certificate.memory)
    console.print(
        table,
        Text(f"rank {certificate.rank}, ‖ΔW‖/‖W‖ {percent(certificate.norm)} (strength {size})"),
        Text(
            f"{certificate.probes} other cues: {percent(certificate.moved)} lead elsewhere now; "
            f"relative change {percent(certificate.drift)}"
        ),
        *(Text(f"note: {note}", style="yellow") for note in certificate.notes),
        Text("achieved" if certificate.achieved else "NOT achieved", style="green" if certificate.achieved else "red")
        + Text("; the weights are as before" if certificate.restored else ""),
        sep="\n",
    )


def _lines(reading: Reading) -> dict[str, str]:
    found = {"noisy starts that come back": came_back(reading.target)}
    if reading.mirror is not None:
        found["… at its mirror image, -p"] = came_back(reading.mirror)
    if reading.origin is not None:
        found["… where it is moved from"] = came_back(reading.origin)
    if kept := reading.protected:
        found[f"… at {len(kept)} protected ones, least"] = came_back(min(kept, key=lambda v: (v.rate, v.cosine)))
    found |= {"mean cosine": figure(reading.target.cosine), "support in the matrix": figure(reading.support)}
    found["energy"] = NONE if reading.energy is None else figure(reading.energy)
    return found | {name: f"{value:.4f}" for name, value in reading.measures.items()}


def came_back(verdict: Verdict) -> str:
    """20/20 (84–100%)."""
    return f"{verdict.hits}/{verdict.trials} ({100 * verdict.low:.0f}–{100 * verdict.high:.0f}%)"


def _survey(basins: Basins, console: Console) -> None:
    table = open_table(("basin", True), ("starts", True), ("energy", True), ("mirror", True))
    for i, count in enumerate(basins.population[:SHOWN]):
        mirror = str(basins.mirror[i]) if basins.mirror[i] >= 0 else NONE
        table.add_row(str(i), str(count), figure(basins.energy[i]) if basins.energy else NONE, mirror)
    console.print(table)
    if len(basins.population) > SHOWN:
        say(console, f"and {len(basins.population) - SHOWN} more; --json has all")
    if basins.empty:
        say(console, f"{basins.empty} starts lead to zero")
