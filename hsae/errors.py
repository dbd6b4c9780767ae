"""The one exception that a user is meant to see."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend: one line that says what was wrong, where, and what to do.

    The command line prints the line and exits with code 2; no traceback.
    """


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
    near = difflib.get_close_matches(wrong, names, n=limit, cutoff=0.4) or names[:limit]
    return "nearest: " + ", ".join(near)


def one_line(error: BaseException, limit: int = 300) -> str:
    """A library's error message on one line, for the inside of an error line of ours."""
    return " ".join(str(error).split())[:limit] or type(error).__name__
