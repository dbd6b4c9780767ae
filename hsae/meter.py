"""How far a long job is: a bar in a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

# Seconds between two lines where there is no terminal.
EVERY = 15.0


class Meter:
    """Progress of one job, with its rate and the time left. A context manager.

    Args:
        console: where to show it.
        verb: what is being done, one word.
        total: units in all.
        done: units that an earlier, interrupted run has done; they do not count for the rate.
        unit: what is counted, such as "tokens".
    """

    def __init__(self, console: Console, verb: str, total: int, done: int = 0, unit: str = "tokens") -> None:
        self.console, self.verb, self.total, self.unit = console, verb, total, unit
        self._first = self._done = done
        self._start = self._said = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}", justify="right"),
            TimeRemainingColumn(compact=True),
            console=console,
            expand=True,
        )
        self._task = self._bar.add_task(verb, total=total, completed=done, rate="")

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._start

    @property
    def rate(self) -> float:
        """Units a second since the start."""
        return (self._done - self._first) / max(self.seconds, 1e-9)

    def __enter__(self) -> Meter:
        if self.console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self._bar.stop()

    def advance(self, units: int) -> None:
        """Some more units are done."""
        self._done += units
        self._bar.update(self._task, completed=self._done, rate=f"{short(self.rate)} {self.unit}/s")
        now = time.monotonic()
        if not self.console.is_terminal and now - self._said >= EVERY:
            self._said = now
            left = duration((self.total - self._done) / max(self.rate, 1e-9))
            done = f"{self.verb}: {self._done:,} of {self.total:,} {self.unit}"
            self.console.print(f"{done}, {self.rate:,.0f} {self.unit}/s, {left} left", markup=False, highlight=False)


def short(number: float) -> str:
    """1234567 -> "1.2M": for a place that must not grow."""
    for unit in ("", "k", "M", "G"):
        if abs(number) < 1000 or unit == "G":
            return f"{number:.3g}{unit}" if abs(number) < 100 else f"{number:.0f}{unit}"
        number /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """Seconds in words: "about" precise, never more than two units."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} days"


def size(count: int) -> str:
    """Bytes in binary units: "1.5 GiB"."""
    power = min(max(count.bit_length() - 1, 0) // 10, 4)
    return f"{count / 1024**power:.{min(power, 1)}f} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
