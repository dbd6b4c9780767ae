"""A worker's side of the pipe: reads commands from stdin, answers each with one line of JSON.

    run N       train on the next N batches                 {"seconds": [each step's], "l0": …, "fvu": …}
    score       measure on the held-out rows                {"l0": …, "fvu": …}
    quit

Batches are gathered before the clock starts, and scoring is outside it. Tools may print what they like: an answer is
known by its first character.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
import time
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peers.job import MARK, Job

# Held-out rows that are scored after every `run`, and by `score`; how many at once.
GLANCE, SCORED, BLOCK = 2048, 16384, 1024


class Trainee(ABC):
    """A tool, training.

    Args:
        job: what to train.
        rows: the training rows, for statistics that the tool takes before it starts.
    """

    package = "torch"
    """the distribution whose version is reported"""

    @abstractmethod
    def __init__(self, job: Job, rows: np.ndarray) -> None: ...

    @abstractmethod
    def step(self, batch: Tensor) -> None:
        """One training step."""

    def run(self, batches: Iterator[Tensor]) -> None:
        """Train on all batches."""
        for batch in batches:
            self.step(batch)

    @abstractmethod
    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The reconstruction of rows at their own scale, and their code."""

    def report(self) -> dict[str, Any]:
        """What else goes into the answer to `run`."""
        return {}

    def tensors(self) -> dict[str, int]:
        """Bytes of parameters and of what the optimiser keeps, for the accounting of memory."""
        return {}


def serve(make: Callable[[Job, np.ndarray], Trainee]) -> None:
    """Answer commands until there are no more."""
    job = Job.read(sys.argv[1])
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    rows = np.load(job.rows, mmap_mode="r")
    train, held = rows[: -job.held_out], torch.from_numpy(np.array(rows[-job.held_out :]))
    trainee = make(job, train)
    batches = _Batches(train, job.batch, job.seed)
    versions = {name: importlib.metadata.version(name) for name in {"torch", trainee.package}}
    _say({"versions": versions})
    for line in sys.stdin:
        command, *arguments = line.split()
        if command == "quit":
            break
        if command == "run":
            clock = _Clock(batches.take(int(arguments[0])))
            trainee.run(iter(clock))
            # Looked at after the clock has stopped.
            answer = {"seconds": clock.seconds, **trainee.report(), **score(trainee, held[:GLANCE])}
        elif command == "score":
            answer = score(trainee, held[:SCORED])
        else:
            raise ValueError(f"unknown command {line!r}")
        _say(answer)


def score(trainee: Trainee, held: Tensor) -> dict[str, float]:
    """Mean number of active latents a row; and the share of the rows' variance that is not explained, pooled."""
    mean, active, missed, spread = held.mean(0), 0.0, 0.0, 0.0
    with torch.no_grad():
        for x in held.split(BLOCK):
            made, code = trainee.reconstruct(x)
            active += code.count_nonzero().item()
            missed += (x - made).double().square().sum().item()
            spread += (x - mean).double().square().sum().item()
    return {"l0": active / len(held), "fvu": missed / spread}


def held(parameters: Iterable[Tensor], optimiser: torch.optim.Optimizer) -> dict[str, int]:
    """What `Trainee.tensors` answers for PyTorch's own parameters and optimisers."""
    state = [t for values in optimiser.state.values() for t in values.values() if isinstance(t, Tensor)]
    return {"parameters": sum(t.nbytes for t in parameters), "optimiser": sum(t.nbytes for t in state)}


def bare(*names: str) -> None:
    """Make packages importable without running their `__init__`, which may import what training does not use."""
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.submodule_search_locations is None:
            raise ImportError(f"no package {name}")
        package = types.ModuleType(name)
        package.__path__, package.__spec__ = list(spec.submodule_search_locations), spec
        sys.modules[name] = package


def _say(answer: dict[str, Any]) -> None:
    print(MARK + json.dumps(answer), flush=True)


class _Batches:
    """Rows in an order that depends on the seed alone, epoch after epoch, as batches of their own memory."""

    def __init__(self, rows: np.ndarray, size: int, seed: int) -> None:
        self.rows, self.size = rows, size
        self.random, self.order = np.random.default_rng(seed), np.empty(0, np.int64)

    def take(self, count: int) -> list[Tensor]:
        while len(self.order) < count * self.size:
            self.order = np.concatenate([self.order, self.random.permutation(len(self.rows))])
        taken, self.order = np.split(self.order, [count * self.size])
        return [torch.from_numpy(self.rows[np.sort(part)]) for part in np.split(taken, count)]


class _Clock:
    """Hands out batches and notes how long each was worked on."""

    def __init__(self, batches: list[Tensor]) -> None:
        self.batches, self.seconds = batches, []

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.batches:
            began = time.perf_counter()
            yield batch
            self.seconds.append(time.perf_counter() - began)
