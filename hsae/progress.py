"""How far a long job is: a bar in a terminal, a plain line now and then elsewhere, nothing on no console."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from hsae.figures import duration, fraction, scientific, short

# Seconds between two lines where there is no terminal.
EVERY = 15.0


class Bar:
    """Progress of one job, with its rate and the time left. A context manager.

    Args:
        console: where to show it; None shows nothing.
        verb: what is being done, one word.
        total: units in all.
        done: units that an earlier, interrupted run has done; they do not count for the rate.
        unit: what is counted, such as "tokens".
        above: what to draw above the bar, asked for at every redraw.
        note: words to add to a plain line.
    """

    def __init__(
        self,
        console: Console | None,
        verb: str,
        total: int,
        done: int = 0,
        unit: str = "tokens",
        above: Callable[[], RenderableType] = lambda: "",
        note: Callable[[], str] = lambda: "",
    ) -> None:
        self.console, self.verb, self.total, self.unit, self._note = console, verb, total, unit, note
        self._first = self._done = done
        self._start = self._said = time.monotonic()
        self._live = _Drawn(above, console) if console is not None and console.is_terminal else None
        if self._live is not None:
            self._task = self._live.add_task(verb, total=total, completed=done, rate="")

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._start

    @property
    def rate(self) -> float:
        """Units a second since the start."""
        return (self._done - self._first) / max(self.seconds, 1e-9)

    def __enter__(self) -> Bar:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def advance(self, units: int) -> None:
        """Some more units are done."""
        self._done += units
        if self._live is not None:
            self._live.update(self._task, completed=self._done, rate=self._pace())
        elif self.console is not None and time.monotonic() - self._said >= EVERY:
            self._said = time.monotonic()
            left = duration((self.total - self._done) / max(self.rate, 1e-9))
            done = f"{self.verb}: {self._done:,} of {self.total:,} {self.unit}"
            say(self.console, f"{done}, {self._pace()}, {left} left{self._note()}")

    def _pace(self) -> str:
        """The rate in a unit of time in which it is a number of some size."""
        slow = self.rate < 1
        return f"{short(self.rate * (60 if slow else 1))} {self.unit}/{'min' if slow else 's'}"


def say(console: Console, text: str) -> None:
    """Print plain lines."""
    # A file or a pipe gets whole lines, a terminal lines that break between words.
    console.print(text, markup=False, highlight=False, soft_wrap=not console.is_terminal)


class _Drawn(Progress):
    """The bar in a terminal, gone when it ends, with something of the job's own above it."""

    def __init__(self, above: Callable[[], RenderableType], console: Console | None) -> None:
        self._above = above
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}", justify="right"),
            TimeRemainingColumn(compact=True),
        )
        super().__init__(*columns, console=console, expand=True, transient=True)

    def get_renderables(self) -> Iterable[RenderableType]:
        if above := self._above():
            yield above
        yield self.make_tasks_table(self.tasks)


class Training:
    """Shows a training run: a bar, and the metrics of every setup as they move.

    Args:
        console: where to show it; None shows nothing.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console
        self._latest: dict[tuple[str, int], Mapping[str, Any]] = {}

    def say(self, line: str) -> None:
        """One line, above the live part."""
        if self.console is not None:
            say(self.console, line)

    def bar(self, steps: int, at: int, batch_tokens: int) -> Bar:
        """The bar of a run of so many steps, `at` of which are done."""
        done, total = at * batch_tokens, steps * batch_tokens
        return Bar(self.console, "train", total, done, above=self._table, note=self._words)

    def update(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Take over the lines that a step logged."""
        self._latest |= {(record["setup"], record["seed"]): record for record in records}

    def _words(self) -> str:
        return "".join(
            f"; {setup} EVR {fraction(r['evr_pooled'])} L0 {r['l0']:.1f}" for (setup, _), r in self._latest.items()
        )

    def _table(self) -> RenderableType:
        if not self._latest:
            return ""
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name in ("setup", "seed", "step", "MSE", "EVR", "pooled", "L1", "L0", "dict", "dead"):
            table.add_column(name, justify="left" if name == "setup" else "right")
        for (setup, seed), r in self._latest.items():
            numbers = (scientific(r["mse"]), fraction(r["evr"]), fraction(r["evr_pooled"]), scientific(r["l1"]))
            counts = (f"{r['l0']:.1f}", f"{r['dictionary']:,}", f"{r['dead']:,}")
            table.add_row(setup, str(seed), str(r["step"]), *numbers, *counts)
        return table
