"""How activations are drawn in a terminal: shades behind tokens, a context on one line, a histogram."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from hsae.errors import visible
from hsae.evidence import LatentEvidence
from hsae.figures import figure

ORANGE = (255, 140, 0)
BLOCKS = " ▁▂▃▄▅▆▇█"
HEIGHT = 4
"""lines of the histogram"""


@dataclass(frozen=True)
class Ink:
    """How strength is shown: orange blended with the terminal's background, or «marks» below 256 colours."""

    colour: bool
    light: bool = False

    @classmethod
    def of(cls, console: Console) -> Ink:
        """The ink of a console. `COLORFGBG` tells a light background; without it, dark is taken."""
        light = os.environ.get("COLORFGBG", "").rpartition(";")[2] in ("7", "15")
        return cls(console.color_system in ("256", "truecolor") and not console.no_color, light)

    def style(self, strength: float) -> Style:
        """Background for a token; `strength` 0 … 1 is the orange's opacity."""
        if not self.colour or strength <= 0:
            return Style()
        # Foreground and background are both given, so the text can be read whatever the terminal's own colours are.
        opacity = 0.15 + 0.85 * min(strength, 1.0)
        paper, faint, full = (255, "black", "black") if self.light else (0, "white", "black")
        blend = (round(paper + (channel - paper) * opacity) for channel in ORANGE)
        return Style(color=full if opacity > 0.6 else faint, bgcolor=Color.from_rgb(*blend))


def keyword_line(text: Sequence[str], strengths: Sequence[float], peak: int, before: int, after: int, ink: Ink) -> Text:
    """A context on one line, cropped so that its peak starts `before` cells in.

    Args:
        text: the tokens' pieces.
        strengths: for each token, 0 … 1.
        peak: index of the peak token. Where its piece is empty (a part of a character), the next one is marked.
        before: cells before the peak, filled with spaces where there is less text.
        after: the most cells from the peak on.
        ink: how strength is shown.
    """
    shown = next((i for i in range(peak, len(text)) if text[i]), peak)
    opening, closing = ("", "") if ink.colour else ("«", "»")
    left: list[tuple[str, Style]] = []
    room = before - len(opening)
    for i in range(shown - 1, -1, -1):
        piece = _last_cells(visible(text[i]), room)
        left.append((piece, ink.style(strengths[i])))
        room -= cell_len(piece)
        if room <= 0:
            break
    line = Text(" " * room, no_wrap=True)
    for piece, style in reversed(left):
        line.append(piece, style)
    line.append(opening)
    right = Text(no_wrap=True)
    # The mark's end must survive the crop, so the peak is cropped by itself.
    right.append(_first_cells(visible(text[shown]), after - len(closing)), ink.style(strengths[peak]))
    right.append(closing)
    for piece, strength in zip(text[shown + 1 :], strengths[shown + 1 :], strict=True):
        if right.cell_len >= after:
            break
        right.append(_first_cells(visible(piece), after), ink.style(strength))
    right.truncate(after)
    line.append_text(right)
    return line


def _first_cells(text: str, cells: int) -> str:
    """The start of a text, in at most so many cells."""
    cropped = text[: max(cells, 0)]
    while cropped and cell_len(cropped) > cells:
        cropped = cropped[:-1]
    return cropped


def _last_cells(text: str, cells: int) -> str:
    """The end of a text, in at most so many cells."""
    cropped = text[-cells:] if cells > 0 else ""
    while cropped and cell_len(cropped) > cells:
        cropped = cropped[1:]
    return cropped


def histogram(found: LatentEvidence, width: int) -> Iterator[Text]:
    """Columns of block characters, `HEIGHT` lines high. Any count above zero shows at least the lowest block."""
    counts = found.histogram.counts
    highest = max(counts)
    label = len(f"{highest:,}")
    column = 2 if width >= 2 * len(counts) + label + 2 else 1
    eighths = [max(round(8 * HEIGHT * count / highest), 1) if count else 0 for count in counts]
    for line in range(HEIGHT - 1, -1, -1):
        bars = "".join(BLOCKS[min(max(n - 8 * line, 0), 8)] * column for n in eighths)
        side = f"{highest:,}" if line == HEIGHT - 1 else "0" if line == 0 else ""
        yield Text.assemble((f"{side:>{label}} ", "dim"), (bars, "dark_orange"), no_wrap=True)
    right = figure(found.histogram.width * len(counts))
    yield Text(f"{'':{label}} 0{right:>{max(column * len(eighths) - 1, len(right) + 1)}}", style="dim", no_wrap=True)
