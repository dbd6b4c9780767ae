"""A training that is cut off between two steps, as by a kill."""

from __future__ import annotations

from typing import Any

from hsae.progress import Training


class Cut(Exception):
    """The end of a process, for a test."""


class CutAt(Training):
    """Ends training at a logged step: the `step`-th."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.left = step

    def update(self, records: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise Cut
