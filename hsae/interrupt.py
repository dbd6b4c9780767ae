"""Ctrl-C at a place of our choosing."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# Seconds until an interruption that got lost is tried again.
AGAIN = 0.02
_asked = False


def listen() -> None:
    """From now on Ctrl-C and SIGTERM raise KeyboardInterrupt, wherever the process is, and `asked` says so.

    An exception out of a destructor or a callback of compiled code is printed and forgotten by Python; this one is
    raised again when that is left.
    """
    global _asked
    _asked = False
    for number in (signal.SIGINT, signal.SIGTERM):
        # What is ignored stays so: a shell has what it starts in the background ignore Ctrl-C.
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _stop)
    sys.unraisablehook = _unraisable


def asked() -> bool:
    """Whether somebody wanted the end. What fails then fails for that: compiled code has errors of its own for it."""
    return _asked


def deaf() -> None:
    """What ends now is not to be ended again: an interruption raises nothing, but `asked` still says so."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, _note)


def dead() -> None:
    """Nothing hears an interruption any more, while the interpreter clears up: it would forget `deaf`."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)


def _note(number: int, frame: Any) -> None:
    global _asked
    _asked = True


def _stop(number: int, frame: Any) -> None:
    global _asked
    _asked = True
    if number == signal.SIGTERM:
        # Batch systems send it to a process and to its parent, which hands it on.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _unraisable(lost: sys.UnraisableHookArgs) -> None:
    if not issubclass(lost.exc_type, KeyboardInterrupt):
        return sys.__unraisablehook__(lost)
    # Not at once: it would be lost again, here.
    signal.signal(signal.SIGALRM, _stop)
    signal.setitimer(signal.ITIMER_REAL, AGAIN)
    return None


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

    Raises:
        KeyboardInterrupt: when the body has ended, if it was pressed after the body last asked.
    """
    pressed = []

    def press(number: int, frame: Any) -> None:
        # As above, SIGTERM may come twice.
        if pressed and number == signal.SIGINT:
            _stop(number, frame)
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
    if pressed:
        raise KeyboardInterrupt
