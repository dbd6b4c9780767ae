"""Charts as inline SVG: the Pareto plot, and histograms of similarity. Colours come from the page's style."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from hsae.compare.matched import BINS, Matching
from hsae.compare.scale import l0_axis, worth_axis
from hsae.errors import visible
from hsae.figures import fraction

LEFT, RIGHT, TOP, BOTTOM = 52.0, 14.0, 14.0, 40.0
"""pixels around a plot"""


@dataclass(frozen=True)
class Point:
    """An SAE in the Pareto plot."""

    key: str
    name: str
    l0: float | None
    worth: float | None
    front: bool


def pareto(points: Sequence[Point], title: str, width: int = 520, height: int = 340) -> str:
    """Worth (1 at best) against L0. The front is filled and joined by a line; empty where nothing can be drawn."""
    there = [
        (p, p.l0, p.worth)
        for p in points
        if p.l0 is not None and p.worth is not None and p.l0 > 0 and math.isfinite(p.worth)
    ]
    if not there:
        return ""
    across, up = l0_axis([l0 for _, l0, _ in there]), worth_axis([worth for *_, worth in there])
    right, bottom = width - RIGHT, height - BOTTOM

    def x(value: float) -> float:
        return LEFT + across.place(value) * (right - LEFT)

    def y(value: float) -> float:
        return bottom - up.place(value) * (bottom - TOP)

    parts = [_line(LEFT, y(tick), right, y(tick), "grid") for tick in up.ticks]
    parts += [_text(LEFT - 8, y(tick) + 4, fraction(tick), "end") for tick in up.ticks]
    parts += [_line(x(tick), TOP, x(tick), bottom, "grid") for tick in across.ticks]
    parts += [_text(x(tick), bottom + 18, f"{tick:g}", "middle") for tick in across.ticks]
    parts += [_text((LEFT + right) / 2, height - 4.0, "L0: active latents a token", "middle")]
    best = sorted((l0, worth) for p, l0, worth in there if p.front)
    path = " ".join(f"{x(l0):.1f},{y(worth):.1f}" for l0, worth in best)
    parts.append(f'<polyline class="front" points="{path}"/>')
    for p, l0, worth in there:
        kind = "best" if p.front else "other"
        below = " (below the plot)" if worth < up.low else ""
        said = escape(f"{p.key} {visible(p.name)}: {title} {fraction(worth)}{below}, L0 {l0:.1f}")
        parts.append(
            f'<g><title>{said}</title><circle class="{kind}" cx="{x(l0):.1f}" cy="{y(worth):.1f}" r="5"/>'
            f"{_text(x(l0) + 8, y(worth) - 6, p.key, 'start', 'key')}</g>"
        )
    return _svg(width, height, f"{title} against L0", parts)


def histogram(matching: Matching, width: int = 420, height: int = 190) -> str:
    """How similar the matched pairs are: bars, and by chance: a line. Empty where nothing is matched."""
    counts, chance = matching.found.histogram, matching.chance.histogram
    if not matching.pairs:
        return ""
    lowest = next(i for i in range(BINS) if counts[i] or chance[i] or i == BINS // 2)
    highest, right, bottom = max(*counts, *chance), width - RIGHT, height - BOTTOM
    step = (right - LEFT) / (BINS - lowest)

    def y(count: int) -> float:
        return bottom - count / highest * (bottom - TOP)

    parts = [_line(LEFT, y(highest), right, y(highest), "grid"), _line(LEFT, bottom, right, bottom, "grid")]
    parts += [_text(LEFT - 8, y(highest) + 4, f"{highest:,}", "end"), _text(LEFT - 8, bottom + 4, "0", "end")]
    outline = []
    for i in range(lowest, BINS):
        left = LEFT + (i - lowest) * step
        low, high = 2 * i / BINS - 1, 2 * (i + 1) / BINS - 1
        said = f"{low:.2f} … {high:.2f}: {counts[i]:,} pairs, {chance[i]:,} by chance"
        parts.append(
            f'<rect class="bar" x="{left + 0.5:.1f}" y="{y(counts[i]):.1f}" width="{step - 1:.1f}" '
            f'height="{bottom - y(counts[i]):.1f}"><title>{said}</title></rect>'
        )
        outline.append(f"{left:.1f},{y(chance[i]):.1f} {left + step:.1f},{y(chance[i]):.1f}")
    parts.append(f'<polyline class="chance" points="{" ".join(outline)}"/>')
    for i in range(lowest, BINS + 1):
        if i % (BINS // 8) == 0:
            parts.append(_text(LEFT + (i - lowest) * step, bottom + 18, f"{2 * i / BINS - 1:g}", "middle"))
    parts.append(_text((LEFT + right) / 2, height - 4.0, f"{matching.measure} of matched latents", "middle"))
    return _svg(width, height, f"matched latents by {matching.measure}", parts)


def _svg(width: int, height: int, label: str, parts: Sequence[str]) -> str:
    head = f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{escape(label)}">'
    return head + "".join(parts) + "</svg>"


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, words: str, anchor: str, kind: str = "label") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
