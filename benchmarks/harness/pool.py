"""The parent's side: starts workers, lets one at a time compute, collects what they answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers.job import MARK, Job

from harness import environments

ROOT = Path(__file__).parents[1]
PAGES = "THP_MEM_ALLOC_ENABLE"


@dataclass(frozen=True)
class Entry:
    """A line of the comparison.

    Attributes:
        name: what the tables call it.
        module: of `peers`.
        job: what it trains.
        peer: whose environment it runs in; empty: this one.
        environment: variables set for it.
        pages: with PyTorch's huge pages or without.
        warmup: steps before the first round, where that is not what all do.
    """

    name: str
    module: str
    job: Job
    peer: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    pages: bool = False
    warmup: int | None = None

    @property
    def label(self) -> str:
        """The name, and the pages."""
        return f"{self.name}, {'huge' if self.pages else 'small'} pages"


class Failed(Exception):
    """A worker that could not start, or died: the end of what it said."""


def command(entry: Entry, module: str, *arguments: str) -> list[str]:
    """The words that start a module of `peers` for an entry.

    Raises:
        Failed: its environment was not made.
    """
    python = environments.python_of(entry.peer) if entry.peer else Path(sys.executable)
    if python is None:
        raise Failed(f"no environment: python benchmarks/harness/environments.py {entry.peer}")
    return [str(python), "-m", f"peers.{module}", *arguments]


def surroundings(entry: Entry) -> dict[str, Any]:
    """Working folder and environment of an entry's process."""
    threads = str(entry.job.threads)
    inherited = {k: v for k, v in os.environ.items() if k not in (PAGES, "OMP_WAIT_POLICY", "HSAE_KERNELS")}
    variables = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, PAGES: str(int(entry.pages))}
    # Nothing is looked up on the network while the clock runs.
    variables |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
    return {"cwd": ROOT, "env": inherited | variables | entry.environment}


class Worker:
    """A process that trains one entry. It computes only between `ask` and its answer."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        words = command(entry, entry.module, entry.job.json())
        self.said = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            words,
            **surroundings(entry),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            text=True,
        )
        self.versions: dict[str, str] = {}

    def ready(self) -> None:
        """Wait until it has started."""
        self.versions = self._answer()["versions"]

    def ask(self, command: str) -> dict[str, Any]:
        """Send a command, wait for its answer.

        Raises:
            Failed: it died.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        return self._answer()

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()
        self.said.close()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        while (line := self.process.stdout.readline()) and not line.startswith(MARK):
            pass
        if not line:
            self.process.wait()
            self.said.seek(0)
            told = self.said.read().decode(errors="replace").strip().splitlines()
            raise Failed(f"exit code {self.process.returncode}: " + "\n".join(told[-3:]))
        return json.loads(line.removeprefix(MARK))


@dataclass
class Measured:
    """What came out of an entry: each step's seconds by round, and L0 and FVU before the first round and after each.

    `before`: the seconds of the steps before the first round.
    """

    entry: Entry
    versions: dict[str, str] = field(default_factory=dict)
    before: list[float] = field(default_factory=list)
    rounds: list[list[float]] = field(default_factory=list)
    l0: list[float] = field(default_factory=list)
    fvu: list[float] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    failure: str = ""


def alternate(entries: Sequence[Entry], rounds: int, steps: int, warmup: int, say: bool = True) -> list[Measured]:
    """Train all entries in turns: `warmup` steps that do not count, then `rounds` times `steps` steps each.

    Who begins changes from round to round. An entry that fails is left out of the rounds that follow.
    """
    results = [Measured(entry) for entry in entries]
    workers: list[Worker | None] = []
    try:
        workers.extend([_start(result) for result in results])
        for i, (result, worker) in enumerate(zip(results, workers, strict=True)):
            first = warmup if result.entry.warmup is None else result.entry.warmup
            # One after the other: what is compiled is compiled here.
            if worker is not None:
                seconds = _turn(result, worker, first) if _ready(result, worker) else None
                workers[i] = None if seconds is None else worker
                result.before = seconds or []
        for number in range(rounds):
            order = [*range(len(results))]
            for i in order[number % len(order) :] + order[: number % len(order)]:
                worker = workers[i]
                if worker is None:
                    continue
                # The last one's threads fall asleep.
                time.sleep(0.02)
                seconds = _turn(results[i], worker, steps)
                if seconds is None:
                    workers[i] = None
                else:
                    results[i].rounds.append(seconds)
            if say:
                print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    finally:
        for worker in workers:
            if worker is not None:
                worker.close()
    return results


def _start(result: Measured) -> Worker | None:
    try:
        return Worker(result.entry)
    except Failed as failed:
        result.failure = str(failed)
        return None


def _ready(result: Measured, worker: Worker) -> bool:
    """Wait until a worker has started; whether it has."""
    try:
        worker.ready()
    except Failed as failed:
        result.failure = str(failed)
        worker.close()
        return False
    result.versions = worker.versions
    return True


def _turn(result: Measured, worker: Worker, steps: int) -> list[float] | None:
    """One turn of a worker; its steps' seconds, or None if it died."""
    try:
        answer = worker.ask(f"run {steps}")
    except Failed as failed:
        result.failure = str(failed)
        worker.close()
        return None
    result.l0.append(answer.pop("l0"))
    result.fvu.append(answer.pop("fvu"))
    seconds = answer.pop("seconds")
    result.extra |= answer
    return seconds
