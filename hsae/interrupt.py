"""Ctrl-C at a place of our choosing."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C sets a flag, so that a step is never cut in two; a second Ctrl-C ends at once.

    Yields:
        a function: was Ctrl-C pressed?
    """
    pressed = []

    def press(number: int, frame: Any) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    try:
        old = signal.signal(signal.SIGINT, press)
    except ValueError:  # not in the main thread: Ctrl-C is somebody else's
        yield lambda: False
        return
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, old)
