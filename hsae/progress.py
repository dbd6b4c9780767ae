"""Live progress of training: a bar with tokens/s and time left, and the metrics of every setup as they move."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

# Seconds between plain lines where there is no terminal to redraw.
PLAIN_EVERY = 15.0


class Progress:
    """Shows a training run on a console; on none, shows nothing.

    Args:
        console: where to show it. One that is no terminal gets a plain line now and then.
    """

    def __init__(self, console: Console | None) -> None:
        self.console = console
        self._live: Live | None = None
        self._latest: dict[tuple[str, int], Mapping[str, Any]] = {}
        self._tokens, self._since, self._plain = 0, 0.0, 0.0

    def say(self, line: str) -> None:
        """One line, above the live part."""
        if self.console is not None:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def start(self, title: str, steps: int, at: int) -> None:
        """Begin: `at` of `steps` are done."""
        if self.console is None:
            return
        self.say(title if at == 0 else f"{title}, going on from step {at}")
        self._since = self._plain = time.monotonic()
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
        self._bar = Bar(*columns, console=self.console)
        self._task = self._bar.add_task("", total=steps, completed=at, rate="")
        if self.console.is_terminal:
            self._live = Live(self._bar, console=self.console, refresh_per_second=4, transient=True)
            self._live.start()

    def advance(self, step: int, tokens: int, records: Iterable[Mapping[str, Any]]) -> None:
        """A step of so many tokens is done; `records` are the lines that it logged."""
        if self.console is None:
            return
        self._tokens += tokens
        for record in records:
            self._latest[(record["setup"], record["seed"])] = record
        rate = f"{self._tokens / max(time.monotonic() - self._since, 1e-9):,.0f} tok/s"
        self._bar.update(self._task, completed=step, rate=rate)
        if self._live is not None:
            self._live.update(Group(self._table(), self._bar))
        elif records and time.monotonic() - self._plain >= PLAIN_EVERY:
            self._plain = time.monotonic()
            total = self._bar.tasks[0].total
            state = "; ".join(f"{n} EVR {r['evr_pooled']:.3f} L0 {r['l0']:.1f}" for (n, _), r in self._latest.items())
            self.say(f"step {step} of {total:.0f}, {rate}: {state}")

    def stop(self) -> None:
        """End the live part. Harmless when there is none."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for name in ("setup", "seed", "MSE", "EVR", "pooled", "L1", "L0", "latents", "dead"):
            table.add_column(name, justify="left" if name == "setup" else "right")
        for (setup, seed), r in self._latest.items():
            cells = (f"{r['mse']:.2e}", f"{r['evr']:.3f}", f"{r['evr_pooled']:.3f}", f"{r['l1']:.2e}", f"{r['l0']:.1f}")
            table.add_row(setup, str(seed), *cells, str(r["dictionary"]), str(r["dead"]))
        return table
