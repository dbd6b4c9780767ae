"""Text of unknown origin in Markdown: shown as it is, never read as Markdown, HTML or the end of a table's cell."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from hsae.errors import visible

_SIGNS = re.compile(r"([\\`*_{}\[\]()#!|~$:@])")


def plain(text: str) -> str:
    """Text inside a sentence or a cell, on one line."""
    text = visible(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SIGNS.sub(r"\\\1", text)


def code(text: str) -> str:
    """Text as code, inside a sentence or a cell, on one line."""
    text = visible(text)
    if not text or "`" in text or "|" in text or text != text.strip():
        # In a code span a backtick ends it, and a bar ends the cell.
        return f"<code>{plain(text)}</code>"
    return f"`{text}`"


def block(text: str, language: str = "") -> str:
    """Lines of code."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], right: str = "") -> str:
    """A table of cells that are Markdown.

    Args:
        heads: of the columns.
        rows: as many cells in each.
        right: an "r" at each column that is flush right, such as "..rr".
    """
    rule = ["---:" if i < len(right) and right[i] == "r" else "---" for i in range(len(heads))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows))
