"""The terminal's face of the evidence: plain data in, rich renderables out. Nothing is read as markup."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.color import Color
from rich.console import Console, Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from hsae.figures import NONE, figure, percent
from hsae.inspect.tables import open_table, run_tables
from hsae.inspect.tokens import visible
from hsae.inspect.view import Glance, Head, LatentView, Overview, TextToken
from hsae.run import Run

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


def draw(shown: Overview | LatentView, ink: Ink, width: int, command: str) -> Iterator[RenderableType]:
    """Everything to print, part by part.

    Args:
        shown: what to draw.
        ink: how strength is shown.
        width: cells in a line.
        command: the words that show the overview again, to name what to do next.
    """
    if isinstance(shown, Overview):
        return _overview(shown, ink, width, command)
    return _latent(shown, ink, width, command)


def run_table(run: Run) -> Group:
    """A run's tables: a line for each setup and seed, what they must beat, and what was measured over which tokens."""
    result = run.result
    return run_tables(result.rows, result.baselines, result.held_out, result.dead_window)


def _overview(shown: Overview, ink: Ink, width: int, command: str) -> Iterator[RenderableType]:
    head = shown.head
    yield from _headline(head, f"run {head.run}")
    yield run_tables(shown.table, shown.baselines, shown.held_out, shown.dead_window)
    if not shown.most_active:
        diverged = any(row.diverged for row in shown.table if (row.setup, row.seed) == (head.setup, head.seed))
        reason = "diverged: it has no latents to show" if diverged else "has no latent that fires on this store"
        yield Text(visible(f"{head.setup}, seed {head.seed}, {reason}"))
        return
    yield Text.assemble("\n", (f"Latents of {visible(head.setup)}, seed {head.seed}", "bold"), _others(head))
    yield Text("Most active", style="bold")
    yield _glances(shown.most_active, ink, width)
    if shown.most_selective:
        yield Text("\nMost selective", style="bold")
        yield _glances(shown.most_selective, ink, width)
    yield Text("same: how many of the 16 strongest contexts peak on one token", style="dim")
    yield _dead(shown)
    latent = (shown.most_selective or shown.most_active)[0].latent
    yield Text(f"next: {visible(command)} --latent {latent}", style="dim")


def _headline(head: Head, title: str) -> Iterator[Text]:
    of = f" of {head.positions:,}" if head.rows < head.positions else ""
    scale = "no normalisation" if head.scale == 1 else f"scaled by {head.scale:.4g}"
    facts = [
        f"store {head.store}",
        head.hook,
        f"{head.rows:,}{of} tokens",
        scale + (", folded into the weights" if head.folded and head.scale != 1 else ""),
    ]
    yield Text(visible(title), style="bold")
    yield Text(visible(" · ".join(facts)), style="dim")
    for warning in head.warnings:
        yield Text(f"WARNING: {visible(warning)}", style="bold yellow")


def _others(head: Head) -> str:
    setups = ", ".join(name for name in head.setups if name != head.setup)
    seeds = ", ".join(str(seed) for seed in head.seeds if seed != head.seed)
    others = [f"{flag} {names}" for flag, names in (("--setup", setups), ("--seed", seeds)) if names]
    return visible(f"  (others: {'; '.join(others)})") if others else ""


def _glances(glances: Sequence[Glance], ink: Ink, width: int) -> Table:
    table = open_table(("latent", True), ("fires", True), ("max", True), ("same", True), ("strongest contexts", False))
    for column, least in zip(table.columns, (6, 6, 7, 4), strict=False):
        column.min_width = least  # so that the two lists stand in the same columns
    room = max(width - 32, 20)
    for glance in glances:
        table.add_row(
            str(glance.latent),
            percent(glance.rate),
            figure(glance.maximum),
            f"{16 * glance.selectivity:.0f}" if glance.selectivity else NONE,
            _snippets(glance, ink, room),
        )
    return table


def _snippets(glance: Glance, ink: Ink, room: int) -> Text:
    count = max(1, min(len(glance.contexts), room // 16))
    each = room // count - 3
    line = Text(no_wrap=True)
    for context in glance.contexts[:count]:
        strengths = [0.0] * len(context.text)
        strengths[context.peak] = context.activation / glance.maximum
        line.append_text(keyword_line(context.text, strengths, context.peak, each * 2 // 3, each - each * 2 // 3, ink))
        line.append("   ")
    line.rstrip()
    return line


def _dead(shown: Overview) -> Text:
    count, names = shown.dead_latents, ", ".join(map(str, shown.dead))
    more = ", …" if count > len(shown.dead) else ""
    text = Text.assemble(("\nDead", "bold"), f": {count:,} of {shown.head.latents:,} latents never fire on this store")
    return text.append(f": {names}{more}" if count else "")


def _latent(shown: LatentView, ink: Ink, width: int, command: str) -> Iterator[RenderableType]:
    head = shown.head
    title = f"latent {shown.latent} of {head.latents:,} · {head.setup}, seed {head.seed} · run {head.run}"
    yield from _headline(head, title)
    if not shown.firings:
        yield Text(f"\nIt never fires on this store. For latents that do: {visible(command)}")
        return
    yield Text(
        f"\nfires on {percent(shown.rate)} of tokens ({shown.firings:,}) · "
        f"mean {figure(shown.mean)} where it fires · maximum {figure(shown.maximum)}"
    )
    yield Text.assemble(
        "\n", ("Activation where it fires", "bold"), (f"  (tokens in bins of {figure(shown.bin_width)})", "dim")
    )
    yield from _histogram(shown, width)
    yield Text("\nTop contexts, each from another sequence", style="bold")
    before = (width - 8) * 11 // 20
    for context in shown.contexts:
        strengths = [value / shown.maximum for value in context.activations]
        line = Text(f"{figure(context.activation):>6}  ", no_wrap=True)
        line.append_text(keyword_line(context.text, strengths, context.peak, before, width - 8 - before, ink))
        yield line
    yield Text("\nTokens it fires on most", style="bold")
    yield _tokens(shown.tokens)


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
    while cell_len(cropped) > cells:
        cropped = cropped[:-1]
    return cropped


def _last_cells(text: str, cells: int) -> str:
    """The end of a text, in at most so many cells."""
    cropped = text[-cells:] if cells > 0 else ""
    while cell_len(cropped) > cells:
        cropped = cropped[1:]
    return cropped


def _histogram(shown: LatentView, width: int) -> Iterator[Text]:
    """Columns of block characters, `HEIGHT` lines high. Any count above zero shows at least the lowest block."""
    highest = max(shown.histogram)
    label = len(f"{highest:,}")
    column = 2 if width >= 2 * len(shown.histogram) + label + 2 else 1
    eighths = [max(round(8 * HEIGHT * count / highest), 1) if count else 0 for count in shown.histogram]
    for line in range(HEIGHT - 1, -1, -1):
        bars = "".join(BLOCKS[min(max(n - 8 * line, 0), 8)] * column for n in eighths)
        side = f"{highest:,}" if line == HEIGHT - 1 else "0" if line == 0 else ""
        yield Text.assemble((f"{side:>{label}} ", "dim"), (bars, "dark_orange"), no_wrap=True)
    right = figure(shown.bin_width * len(shown.histogram))
    yield Text(f"{'':{label}} 0{right:>{max(column * len(eighths) - 1, len(right) + 1)}}", style="dim", no_wrap=True)


def _tokens(tokens: Sequence[TextToken]) -> Table:
    table = open_table(
        ("token", False), ("id", True), ("firings", True), ("of its occurrences", True), ("share of activation", True)
    )
    table.columns[0].max_width = 30
    for use in tokens:
        table.add_row(
            Text(visible(use.text[:100]).replace(" ", "␣")),
            str(use.token),
            f"{use.firings:,}",
            percent(use.firings / use.occurrences),
            percent(use.mass),
        )
    return table
