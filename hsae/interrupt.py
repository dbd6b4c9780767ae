"""Ctrl-C at a place of our choosing."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def terminable() -> None:
    """SIGTERM from now on is what Ctrl-C is, where nothing else waits for it: a line, and exit code 130."""

    def stop(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_IGN)  # what it ends is not to be ended again
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, stop)


@contextmanager
def killable() -> Iterator[None]:
    """SIGTERM ends the process at once, while it waits in compiled code that no exception reaches."""
    try:
        old = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    except ValueError:  # not in the main thread, which signals do not end
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)


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
