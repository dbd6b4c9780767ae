"""Latents and strengths as they are written in one word, 27,30-40 and 0,1,-2.5, and latents as they are named."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from hsae.config import require

MOST = 4096
"""latents that one list may name"""
NAMED = 4
"""latents that are named one by one before the rest is counted"""


def latent_list(text: str) -> tuple[int, ...]:
    """The latents of a list such as `27,30-40`, each once, in its order; none of an empty text.

    Raises:
        ValueError: not such a list, or a range that runs backwards, or more than `MOST` latents.
    """
    wanted = f"numbers and ranges such as 27,30-40, of at most {MOST:,} latents"
    found: dict[int, None] = {}
    for word in text.split(",") if text.strip() else ():
        match = re.fullmatch(r"\s*(\d{1,9})(?:\s*-\s*(\d{1,9}))?\s*", word)
        require(match is not None, "latent", wanted, text)
        assert match is not None
        first, last = int(match[1]), int(match[2] or match[1])
        require(first <= last < first + MOST, "latent", wanted, text)
        found |= dict.fromkeys(range(first, last + 1))
        require(len(found) <= MOST, "latent", wanted, text)
    return tuple(found)


def strength_list(text: str) -> tuple[float, ...]:
    """The strengths of a list such as `0,1,-2.5`, each once, in its order.

    Raises:
        ValueError: not such a list, or a number that is not finite.
    """
    wanted = "numbers such as 1 or 0,1,-2.5"
    found: dict[float, None] = {}
    for word in text.split(","):
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        require(math.isfinite(value), "strength", wanted, text)
        found[value + 0.0] = None  # -0 is 0
    return tuple(found)


def named(latents: Sequence[int]) -> str:
    """Words for latents: `latent 5`, or `latents 1, 2, 3, 4 and 10 more`."""
    some = ", ".join(map(str, latents[:NAMED]))
    more = f" and {len(latents) - NAMED:,} more" if len(latents) > NAMED else ""
    return f"latent{'s' if len(latents) > 1 else ''} {some}{more}"
