"""What `growth.py` measured: the curves, how they should grow, what came out, the page and its figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ALLOWED = 0.1
"""how far a slope may be from the one that it should be"""
PROSE = """\
Every point is `hsae harvest` and `hsae train` in processes of their own: the bundled model (width 64, float32) and its
stories, repeated; TopK (k = 32) with 3,200 latents over tokens, TopK and SoftHebb (`hebb-tied`) for a few steps over
latents. Slopes are of straight lines in log-log through the largest points, and the verdicts are computed from them.

What should come out, and why:

- Over tokens, time a token and memory are constant: shards are written and forgotten, and training reads pools of
  shards of 256 MiB, one while another is used. Below 2 M tokens of width 64 the store is smaller than two pools,
  so memory still rises there, and the start of a process (some seconds) weighs on the rates.
- Disk is linear: 4 bytes a number, and 5 for the token and whether it counts.
- A restart reads the checkpoint and one pool, wherever in the store it goes on: constant.
- Over latents, the encoder's product is all that grows, so the rate falls as 1 / latents and memory rises in
  proportion, once both are above what a process takes anyway (some 200 MiB) and a step costs apart from it. SoftHebb's
  kernel makes no matrix [token, latent]; a step that is logged (every tenth) reconstructs in tiles, and takes about
  twice as long. But the first step, the last and every hundredth is diagnosed too, from a dozen such matrices of 4,096
  tokens: in a run as short as here that is a good part of the time.
"""
FIGURE = "![Rates, memory, disk and restarts](growth.svg)"


@dataclass(frozen=True)
class Curve:
    """What is measured along an axis, and how it should grow: as the axis to the power `slope`."""

    axis: str
    key: str
    title: str
    slope: float
    part: float = 1.0
    """the share of the points, the largest, that the slope is fitted to: the others show what is there once, for all"""


CURVES = (
    Curve("tokens", "harvest_rate", "harvest, tokens/s", 0, 0.7),
    Curve("tokens", "train_rate", "training, tokens/s", 0, 0.7),
    Curve("tokens", "harvest_cpu", "harvest, CPU s a million", 0, 0.7),
    Curve("tokens", "train_cpu", "training, CPU s a million", 0, 0.7),
    Curve("tokens", "harvest_memory", "harvest, memory, MiB", 0, 0.7),
    Curve("tokens", "train_memory", "training, memory, MiB", 0, 0.7),
    Curve("tokens", "disk", "disk, MiB", 1),
    Curve("tokens", "resume", "first step after a restart, s", 0, 0.7),
    Curve("latents", "topk_rate", "TopK, tokens/s", -1, 0.6),
    Curve("latents", "topk_memory", "TopK, memory, MiB", 1, 0.6),
    Curve("latents", "hebb_rate", "SoftHebb, tokens/s", -1, 0.6),
    Curve("latents", "hebb_memory", "SoftHebb, memory, MiB", 1, 0.6),
)


def fit(curve: Curve, points: Sequence[dict[str, float]]) -> float:
    """The slope in log-log over the largest points of a curve."""
    there = [(point[curve.axis], point[curve.key]) for point in points if point[curve.key] > 0]
    there = there[len(there) - max(2, round(curve.part * len(there))) :]
    if len(there) < 2:
        return math.nan
    x, y = np.log(np.array(there)).T
    return float(np.polyfit(x, y, 1)[0])


def verdict(curve: Curve, slope: float) -> str:
    """Whether a curve grows as it should, in words."""
    should = {0: "constant", 1: "linear", -1: "as 1 / latents"}[int(curve.slope)]
    if math.isnan(slope):
        return "not measured"
    better = slope > curve.slope if curve.key.endswith("rate") else slope < curve.slope
    if abs(slope - curve.slope) <= ALLOWED:
        return f"{should}, as it should be"
    return f"{'better' if better else 'worse'} than {should}"


def text(record: dict[str, Any]) -> str:
    """The tables."""
    took = f"{record['seconds'] / 60:.0f} minutes; load average at the end {record['load']:.1f}"
    lines = [
        "# Growth",
        "",
        f"`{record['command']}`, {record['date']}, {record['machine']}, {took}.",
        "",
        PROSE,
        FIGURE,
    ]
    for axis, points in record["points"].items():
        if not points:
            continue
        curves = [curve for curve in CURVES if curve.axis == axis]
        lines += ["", f"| {axis} | {' | '.join(curve.title for curve in curves)} |", "|---:" * (len(curves) + 1) + "|"]
        for point in points:
            lines.append(f"| {point[axis]:,} | {' | '.join(_figure(point[curve.key]) for curve in curves)} |")
        lines += ["", "| | slope | should be | |", "|---|---:|---:|---|"]
        for curve in curves:
            slope = fit(curve, points)
            lines.append(f"| {curve.title} | {slope:.2f} | {curve.slope:g} | {verdict(curve, slope)} |")
    return "\n".join(lines) + "\n"


def _figure(value: float) -> str:
    return "" if math.isnan(value) else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def draw(folder: Path, points: dict[str, list[dict[str, float]]]) -> None:
    """A panel for each kind of figure: rates, memory, disk and restart over tokens, rates and memory over latents."""
    from hsae.canvas import PALETTE, canvas

    panels = (
        ("tokens", ("harvest_rate", "train_rate"), "tokens/s"),
        ("tokens", ("harvest_memory", "train_memory"), "memory, MiB"),
        ("tokens", ("disk",), "disk, MiB"),
        ("tokens", ("resume",), "first step after a restart, s"),
        ("latents", ("topk_rate", "hebb_rate"), "tokens/s"),
        ("latents", ("topk_memory", "hebb_memory"), "memory, MiB"),
    )
    named = {curve.key: curve.title.partition(",")[0] for curve in CURVES}
    with canvas(folder, "growth", 3, 2, 7.5) as (_, axes):
        for ax, (axis, keys, title) in zip(axes, panels, strict=True):
            ax.set(xlabel=axis, title=title)
            for key, colour in zip(keys, PALETTE, strict=False):
                if there := [(point[axis], point[key]) for point in points[axis] if point[key] > 0]:
                    x, y = zip(*there, strict=True)
                    ax.loglog(x, y, "o-", color=colour, markersize=3, label=named[key])
            if len(keys) > 1 and points[axis]:
                ax.legend()
    (folder / "growth.png").unlink()  # the page shows the other
