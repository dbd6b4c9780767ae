"""The terminal. What comes from files and strangers is shown there, and can do nothing there."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from hsae.errors import visible

# Control characters but tab and newline, which lay text out; marks that turn its direction; halves of surrogate pairs.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class Terminal(Console):
    """A console on which no text can move the cursor, colour what follows or set a title, and brackets are brackets.

    Args:
        settings: those of rich's console.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As rich does, with escapes in place of what is not text."""
        for segment in super().render(renderable, options):
            if segment.control is None and _UNSAFE.search(segment.text):
                text = _UNSAFE.sub(lambda found: visible(found[0]), segment.text)
                yield Segment(text, segment.style)
            else:
                yield segment
