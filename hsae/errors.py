"""The one exception that a user is meant to see, and text of others made safe to show."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable

LONGEST = 1000
"""characters of an error line; of a longer one the middle is left out"""


class UserError(Exception):
    """Something the user can mend: one line that says what was wrong, where, and what to do.

    The command line prints the line and exits with code 2; no traceback. What a file or a stranger put into the line
    cannot break it, move the cursor or fill the screen.
    """

    def __init__(self, line: str) -> None:
        super().__init__(cut(visible(line), LONGEST))


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with a line that says what is kept and how to go on. Exit code 130."""


class Elsewhere(UserError):
    """What went wrong is told by another of the processes that torchrun started. Only the first has a line for it."""

    def __init__(self, line: str = "") -> None:
        super().__init__(line)


def visible(text: str) -> str:
    """Text that is safe on one line of a terminal: ⏎ for a newline, escapes for control and formatting characters."""
    return text if text.isprintable() else "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character == "\n":
        return "⏎"
    # Cc, Cf and Cs move the cursor, turn the direction of writing or are no text at all; Zl and Zp break lines.
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character.encode("unicode_escape", "surrogatepass").decode("ascii")
    return character


def cut(text: str, limit: int) -> str:
    """Text of at most that many characters: of a longer one the beginning and the end."""
    return text if len(text) <= limit else f"{text[: limit * 2 // 3 - 2]} … {text[len(text) - limit // 3 + 1 :]}"


def shown(value: object, limit: int = 120) -> str:
    """A value as an error line quotes it."""
    try:
        return cut(repr(value), limit)
    except (ValueError, RecursionError):  # a number of thousands of digits, a list of thousands of levels
        return "a number of thousands of digits" if isinstance(value, int) else f"a {type(value).__name__} of that size"


def choices(wrong: str, known: Iterable[str], limit: int = 5) -> str:
    """Words for the end of an error line: the nearest known names, or all of them when they are few.

    Args:
        wrong: what the user wrote.
        known: the names that exist.
        limit: the most names to print.
    """
    names = sorted(known)
    if not names:
        return "there is none"
    if len(names) <= limit:
        return "there is " + ", ".join(names)
    near = difflib.get_close_matches(wrong[:200], names, n=limit, cutoff=0.4) or names[:limit]
    return "nearest: " + ", ".join(near)


def one_line(error: BaseException, limit: int = 300) -> str:
    """A library's error message on one line, for the inside of an error line of ours."""
    return visible(" ".join(str(error).split()))[:limit] or type(error).__name__
