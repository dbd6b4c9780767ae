"""What a worker is asked to train."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

MARK = "\x1e"
"""begins every line of a worker that is an answer"""


@dataclass(frozen=True)
class Job:
    """One training in one process.

    Attributes:
        task: `relu` (ReLU code, L1 penalty), `topk`, or `softhebb` (tied, no decoder to learn).
        rows: a .npy file of activations, float32 [row, width], shuffled. The last `held_out` are never trained on.
        l1: weight of the L1 penalty in the tool's own convention.
        lr: learning rate; None: the tool's own default.
        steps: how many there will be at most, for learning-rate schedules.
        options: what only some tools know.
    """

    task: str
    rows: str
    held_out: int
    latents: int
    batch: int
    threads: int
    steps: int
    k: int = 32
    l1: float = 0.01
    lr: float | None = None
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    def json(self) -> str:
        """To go on a command line."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> Job:
        """Back from `json`."""
        return cls(**json.loads(text))
