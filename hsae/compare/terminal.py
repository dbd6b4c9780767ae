"""A comparison in the terminal: the metrics, the Pareto front as characters, and what pairs of SAEs share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from hsae.compare.pair import Comparison
from hsae.compare.report import Entry, Report
from hsae.compare.scale import Axis, l0_axis, worth_axis
from hsae.compare.wording import caption, pairs_caption, same_rows
from hsae.errors import visible
from hsae.figures import NONE, fraction, percent, scientific, short, thousands
from hsae.inspect.tables import open_table

DETAILED = 6
"""pairs up to which latents are listed"""
PLOT_HEIGHT, PLOT_WIDTH = 12, 64


def draw(report: Report, width: int) -> Iterator[RenderableType]:
    """Everything to print, part by part.

    Args:
        report: what to draw.
        width: cells in a line.
    """
    for note in report.notes:
        yield Text(visible(f"note: {note}"), style="yellow")
    yield _metrics(report, width)
    yield Text(visible(caption(report)), style="dim")
    yield from _plot(report.entries, min(PLOT_WIDTH, width - 10))
    if not report.pairs:
        return
    keys = {entry.label: entry.key for entry in report.entries}
    yield Text("\nLatents matched one to one", style="bold")
    yield _pairs(report.pairs, keys)
    yield Text(pairs_caption(report), style="dim")
    if line := same_rows(report.pairs, keys):
        yield Text(f"note: {line}", style="yellow")
    if len(report.pairs) > DETAILED:
        yield Text(
            "\nThe latents most alike and most unique of each pair: name two SAEs, or give --html or --json.",
            style="dim",
        )
        return
    for pair in report.pairs:
        yield from _latents(pair, keys, width)
    yield Text(_next(report), style="dim")


def _metrics(report: Report, width: int) -> Table:
    losses = any(entry.figures.recovered is not None for entry in report.entries)
    headings = ["MSE", "EVR", "pooled", "L1", "L0", "dict", "dead", "tok/s", *(["CE"] if losses else [])]
    table = open_table(("", False), ("SAE", False), *((heading, True) for heading in headings))
    table.columns[1].no_wrap, table.columns[1].overflow = False, "fold"  # a long name breaks before a number is cut
    room = width - (68 if losses else 62)
    for entry in report.entries:
        of = entry.figures
        cells = [scientific(of.mse), fraction(of.evr), fraction(of.evr_pooled), scientific(of.l1)]
        cells += [NONE if of.l0 is None else f"{of.l0:.1f}", _whole(of.dictionary), _whole(of.dead)]
        cells += [NONE if of.tokens_per_second is None else short(of.tokens_per_second)]
        cells += [fraction(of.recovered)] if losses else []
        table.add_row(f"{entry.key}{'*' if entry.front else ''}", Text(_broken(visible(entry.label), room)), *cells)
    return table


def _broken(label: str, room: int) -> str:
    """A label in two lines, the run and the rest, where it does not fit in one."""
    return label if len(label) <= room else label.replace(":", ":\n", 1)


def _plot(entries: Sequence[Entry], width: int) -> Iterator[Text]:
    """Pooled EVR against L0, a letter for each SAE; where several fall together the first's stands, with a +."""
    points = [(e.figures.l0, e.figures.evr_pooled, e.key + "*" * e.front) for e in entries]
    there = [(x, y, key) for x, y, key in points if x is not None and y is not None and x > 0 and math.isfinite(y)]
    if len(there) < 2:
        return
    across, up = l0_axis([x for x, _, _ in there]), worth_axis([y for _, y, _ in there])
    lines = [[" "] * width for _ in range(PLOT_HEIGHT)]
    for x, y, key in there:
        column = round(across.place(x) * (width - 1 - len(key)))
        line = lines[PLOT_HEIGHT - 1 - round(up.place(y) * (PLOT_HEIGHT - 1))]
        if line[column] != " ":
            line[column + 1 : column + 2] = ["+"]
            continue
        line[column : column + len(key)] = list(key)
    labels = {PLOT_HEIGHT - 1 - round(up.place(tick) * (PLOT_HEIGHT - 1)): fraction(tick) for tick in up.ticks}
    yield Text("\npooled EVR", style="dim")
    for i, line in enumerate(lines):
        text = "".join(line).rstrip()
        yield Text.assemble((f"{labels.get(i, ''):>6} │", "dim"), (text, "bold"), no_wrap=True)
    yield Text("       └" + "─" * width, style="dim", no_wrap=True)
    yield Text("        " + _ticks(across, width) + " L0", style="dim", no_wrap=True)
    if low := [f"{key} {fraction(y)}" for _, y, key in there if y < up.low]:
        yield Text(f"drawn at the lower edge: {', '.join(low)}", style="dim")
    if gone := [key for *_, key in points if key not in {key for *_, key in there}]:
        yield Text(f"not drawn, for want of an L0 above 0: {', '.join(gone)}", style="dim")


def _ticks(axis: Axis, width: int) -> str:
    line = [" "] * width
    for tick in axis.ticks:
        label = f"{tick:g}"
        start = min(round(axis.place(tick) * (width - 2)), width - len(label))
        if all(cell == " " for cell in line[max(start - 1, 0) : start + len(label)]):
            line[start : start + len(label)] = list(label)
    return "".join(line)


def _pairs(pairs: Sequence[Comparison], keys: dict[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    headings = ("pair", "fires", "", "cosine", "chance", "shared", "", "corr.", "chance", "shared", "", "same")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "pair" else "right", no_wrap=True)
    for pair in pairs:
        cells = [
            f"{keys[pair.a]}–{keys[pair.b]}",
            thousands(float(pair.size_a - pair.dead_a)),
            thousands(float(pair.size_b - pair.dead_b)),
        ]
        for matching in (pair.cosine, pair.correlation):
            cells += [fraction(matching.found.mean), fraction(matching.chance.mean)]
            cells += [_share(matching.found.shared, count) for count in (matching.latents_a, matching.latents_b)]
        table.add_row(*cells, _share(pair.same, pair.both))
    return table


def _latents(pair: Comparison, keys: dict[str, str], width: int) -> Iterator[Text]:
    a, b = keys[pair.a], keys[pair.b]
    yield Text.assemble("\n", (visible(f"{a}–{b}  {pair.a} ↔ {pair.b}"), "bold"))
    for matching in (pair.cosine, pair.correlation):
        if not matching.pairs:
            yield Text(f"{matching.measure}: nothing to match")
            continue
        alike = [(f"{a}{twin.a} {b}{twin.b}", twin.similarity, twin.rate_a) for twin in matching.alike]
        yield _line(f"{matching.measure}: alike", alike, width)
        for key, lone in ((a, matching.lone_a), (b, matching.lone_b)):
            yield _line(f"  unique to {key}", [(f"{key}{one.latent}", one.similarity, one.rate) for one in lone], width)


def _line(head: str, latents: Sequence[tuple[str, float, float]], width: int) -> Text:
    """As many latents as the line holds."""
    line = f"{head:<18}"
    for name, similarity, rate in latents:
        cell = f" {name} {_similarity(similarity)} ({percent(rate)})"
        if len(line) + len(cell) > width:
            break
        line += cell
    return Text(line if latents else f"{line} –")


def _similarity(value: float) -> str:
    return fraction(0.0 if abs(value) < 5e-4 else value)


def _next(report: Report) -> str:
    entry, first = report.entries[0], report.pairs[0]
    listed = [*first.cosine.lone_a, *first.correlation.lone_a]
    latent = listed[0].latent if listed else 0
    words = "Latents by number, similarity and firing rate (of the first); unique: no other is nearer."
    return f"{words}\nnext: hsae inspect {visible(entry.inspect)} --latent {latent}"


def _share(part: int, whole: int) -> str:
    return percent(part / whole) if whole else NONE


def _whole(value: int | None) -> str:
    return NONE if value is None else f"{value:,}"
