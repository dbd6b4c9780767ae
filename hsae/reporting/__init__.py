"""Where a training is reported beside `metrics.jsonl`: TensorBoard and Weights & Biases, one curve for each SAE.

`metrics.jsonl` is the truth. A sink that opens is told what stands there already, so that a run which was cut off and
goes on, or is finished, or gets a sink only now, has every point once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from hsae.record import Row
from hsae.run import METRICS
from hsae.trainconfig import TrainConfig

Key = tuple[str, int]
"""setup and seed: what names one SAE of a run"""


@runtime_checkable
class Sink(Protocol):
    """What takes a training's numbers."""

    def log(self, key: Key, step: int, values: Mapping[str, float]) -> None:
        """The numbers of one SAE at one step, by name."""

    def result(self, key: Key, step: int, values: Mapping[str, float]) -> None:
        """The numbers of a trained SAE over the held-out tokens."""


class Reports:
    """The sinks of a training, told in the records of `metrics.jsonl` and the rows of the run's table."""

    def __init__(self, sinks: Iterable[Sink]) -> None:
        self._sinks = tuple(sinks)

    def log(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Pass on the lines that a step logged."""
        for record in records if self._sinks else ():
            values = {name: value for name, value in numbers(record).items() if name not in ("step", "seed")}
            for sink in self._sinks:
                sink.log((record["setup"], record["seed"]), record["step"], values)

    def result(self, rows: Iterable[Row], step: int) -> None:
        """Pass on the table of a run whose last step is `step`."""
        for row in rows if self._sinks else ():
            values = {name: value for name, value in numbers(vars(row)).items() if name != "seed"}
            for sink in self._sinks:
                sink.result((row.setup, row.seed), step, values)


def numbers(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers in a record by name; those in a table of it as `table/name`."""
    found: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[prefix + name] = float(value)
    return found


@contextmanager
def reporting(settings: TrainConfig, folder: Path, say: Callable[[str], None]) -> Iterator[Reports]:
    """Open the sinks that the settings ask for, and tell them what the run has logged so far.

    Args:
        settings: of the training.
        folder: the run's folder.
        say: shows a line to the user.

    Raises:
        UserError: a package is missing, or the service does not let us in.
    """
    with ExitStack() as stack:
        sinks: list[Sink] = []
        if settings.tensorboard:
            from hsae.reporting.tensorboard import TensorBoard

            sinks.append(stack.enter_context(TensorBoard(folder, say)))
        if settings.wandb:
            from hsae.reporting.wandb import WeightsAndBiases

            sinks.append(stack.enter_context(WeightsAndBiases(folder, settings, say)))
        reports = Reports(sinks)
        if sinks and (folder / METRICS).exists():
            with open(folder / METRICS, encoding="utf-8") as lines:
                reports.log(json.loads(line) for line in lines)
        yield reports
