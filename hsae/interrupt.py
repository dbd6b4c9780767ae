"""Ctrl-C at a place of our choosing."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C, or SIGTERM, sets a flag, so that a step is never cut in two; a second Ctrl-C ends at once.

    Torchrun and batch systems end a process by SIGTERM, and give it half a minute.

    Yields:
        a function: was Ctrl-C pressed?
    """
    pressed = []

    def press(number: int, frame: Any) -> None:
        # Batch systems send SIGTERM to a process and to its parent, which hands it on.
        if pressed and number == signal.SIGINT:
            raise KeyboardInterrupt
        pressed.append(number)

    try:
        old = {number: signal.signal(number, press) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: Ctrl-C is somebody else's
        yield lambda: False
        return
    try:
        yield lambda: bool(pressed)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
