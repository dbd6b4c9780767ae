"""The figures of the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hsae.canvas import PALETTE, canvas
from hsae.paper.measure import Curve, Deciles, Line, Logs, curve
from hsae.paper.plan import Arm
from hsae.paper.published import SETUPS, TABLE_1, TITLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours, and line styles, so that no line is told by its colour alone.
COLOURS = {"bp": "#0072B2", "bp-tied": "#E69F00", "bp-dec": "#009E73", "hebb-tied": "#D55E00"}
STYLES = {"bp": "-", "bp-tied": "-.", "bp-dec": "-", "hebb-tied": "--"}
SYMLOG = {"linthresh": 1.0, "linscale": 1.5}
"""the scale of EVR: linear between -1 and 1, logarithmic below"""


def progress(folder: Path, name: str, logged: Logs, panels: Sequence[tuple[str, str, str]], titles: str = "") -> None:
    """Quantities over steps, mean and standard deviation over seeds, the paper's four setups.

    Args:
        folder: where to write.
        name: of the figure's files.
        logged: of the training.
        panels: (quantity, title, scale of the axis: log, evr or linear).
        titles: of the whole figure.
    """
    # The legend takes the place that an odd number of panels leaves free, or else a line below.
    rows, free = -(-len(panels) // 2), len(panels) % 2 == 1
    with canvas(folder, name, rows, 2, 2.5 * rows + (0.2 if free else 0.6)) as (figure, axes):
        for axis, (quantity, title, scale) in zip(axes, panels, strict=False):
            for setup in SETUPS:
                found = curve(logged, setup, quantity)
                if found is not None:
                    _band(axis, found, COLOURS[setup], STYLES[setup], TITLES[setup])
            _scaled(axis, scale)
            axis.set(title=title, xlabel="step")
        handles, labels = axes[0].get_legend_handles_labels()
        if free:
            axes[-1].axis("off")
            axes[-1].legend(handles, labels, loc="center", title="mean ± std over seeds", fontsize=10)
        else:
            said = "mean ± std over seeds"
            figure.legend(handles, labels, loc="outside lower center", ncols=4, title=said, fontsize=9)
        if titles:
            figure.suptitle(titles, fontsize=10)


def _band(axis: Axes, found: Curve, colour: str, style: str, label: str) -> None:
    axis.plot(found.steps, found.mean, style, color=colour, label=label)
    low = [m - s for m, s in zip(found.mean, found.std, strict=True)]
    high = [m + s for m, s in zip(found.mean, found.std, strict=True)]
    if any(found.std):
        axis.fill_between(found.steps, low, high, color=colour, alpha=0.2, linewidth=0)


def _scaled(axis: Axes, scale: str) -> None:
    if scale == "log":
        heights = [v for line in axis.get_lines() for v in line.get_ydata() if v > 0]  # pyright: ignore
        axis.set_yscale("log", nonpositive="clip")
        if heights:
            axis.set_ylim(min(heights) / 1.5, max(heights) * 1.5)
    elif scale == "evr":
        axis.set_yscale("symlog", **SYMLOG)
        axis.axhline(0, color="#888888", linewidth=0.8)
        axis.set_ylim(top=1.3)


FIGURES: dict[str, tuple[tuple[str, str, str], ...]] = {
    "losses": (("mse", "MSE", "log"), ("evr", "EVR, mean over tokens", "evr"), ("l1", "L1", "log")),
    "sparsity": (("l0", "L0", "log"), ("dictionary", "dictionary, of one training batch", "log")),
    "spread": (("evr_std", "standard deviation of EVR over tokens", "log"),),
}


def diagnostics(folder: Path, name: str, logged: Logs, setup: str) -> None:
    """What a local rule does over the steps."""
    panels: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
        ("entropy of winners, 1: uniform", (("winner_entropy", "winner entropy"),)),
        ("Gini coefficient of usage, 1: one alone", (("usage_gini", "usage Gini"),)),
        ("mean distance of row norms from 1", (("norm_distance", "norm distance"),)),
        ("bias less its start", (("bias_drift", "mean"), ("bias_lowest", "lowest"))),
        ("update’s cosine with the descent of", (("cos_mse", "MSE"), ("cos_l1", "L1"), ("cos_l2", "L2"))),
        (
            "parts of the update",
            (
                ("hebbian_cos_mse", "Hebbian, MSE"),
                ("anti_cos_l1", "anti-Hebbian, L1"),
                ("anti_cos_l2", "anti-Hebbian, L2"),
            ),
        ),
    )
    with canvas(folder, name, 3, 2, 7.2) as (figure, axes):
        for axis, (title, quantities) in zip(axes, panels, strict=True):
            for i, (quantity, label) in enumerate(quantities):
                found = curve(logged, setup, f"rule.{quantity}")
                if found is not None and quantity == "bias_lowest":
                    found = replace(found, mean=tuple(value - found.mean[0] for value in found.mean))
                if found is not None:
                    _band(axis, found, PALETTE[i], ("-", "--", "-.")[i], label)
            if not axis.get_lines():
                axis.axis("off")
                continue
            axis.set(title=title, xlabel="step")
            if len(quantities) > 1:
                axis.legend(fontsize=8)
        figure.suptitle(f"{TITLES[setup]}: what the rule does", fontsize=10)


def against_scale(folder: Path, name: str, arms: Sequence[Arm], found: Mapping[str, Line]) -> None:
    """Final metrics against the scale of the initial weights, beside the paper's (thin lines across)."""
    panels: tuple[tuple[str, str, str], ...] = (
        ("evr", "EVR, mean over tokens", "evr"),
        ("mse", "MSE", "log"),
        ("l0", "L0", "log"),
        ("dictionary", "dictionary", "log"),
    )
    plain = [arm for arm in arms if arm.std is not None and "," not in arm.label]
    varied = [arm for arm in arms if arm.std is not None and "," in arm.label]
    with canvas(folder, name, 2, 2, 5.8) as (figure, axes):
        for axis, (metric, title, scale) in zip(axes, panels, strict=True):
            for base in ("bp-tied", "hebb-tied"):
                points = _points([arm for arm in plain if arm.base == base], found, metric)
                axis.plot(*points, STYLES[base], marker="o", markersize=4, color=COLOURS[base], label=TITLES[base])
                paper = TABLE_1[base].mean(metric)
                axis.axhline(paper, color=COLOURS[base], linewidth=0.8, linestyle=":", label=f"{TITLES[base]}, paper")
            for i, arm in enumerate(varied):
                said = "Hebb Tied, " + arm.label.partition(", ")[2]
                again = any(other.label.partition(", ")[2] == arm.label.partition(", ")[2] for other in varied[:i])
                marker = {"mean": "s", "no b": "^"}.get(arm.label.partition(", ")[2][:4], "x")
                points = _points([arm], found, metric)
                axis.plot(*points, marker, color="#333333", markersize=5, label=None if again else said)
            axis.set_xscale("log", base=2)
            _scaled(axis, scale)
            axis.set(title=title, xlabel="standard deviation of the initial weights")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)


def _points(arms: Sequence[Arm], found: Mapping[str, Line], metric: str) -> tuple[list[float], list[float]]:
    there = [(arm.std, found[arm.name].mean(metric)) for arm in arms if arm.name in found]
    kept = [(x, y) for x, y in there if x is not None and y is not None]
    # A count of 0 has no place on a log axis.
    floor: Callable[[float], float] = (lambda y: y) if metric == "evr" else (lambda y: max(y, 0.1 if y == 0 else y))
    return [x for x, _ in kept], [floor(y) for _, y in kept]


def by_norm(folder: Path, name: str, found: Mapping[str, Deciles]) -> None:
    """Where the error is: its share, and EVR, by decile of token norm."""
    with canvas(folder, name, 1, 2, 2.9) as (_, (left, right)):
        for i, (setup, parts) in enumerate(found.items()):
            places = [10 * (d + 1) for d in range(len(parts.share))]
            label = TITLES.get(setup, setup)
            colour, style = COLOURS.get(setup, PALETTE[i % 6]), STYLES.get(setup, "-")
            left.plot(places, parts.share, style, marker="o", markersize=4, color=colour, label=label)
            right.plot(places, parts.evr, style, marker="o", markersize=4, color=colour, label=label)
        left.set(title="share of the squared error", xlabel="tokens by norm, percentile")
        left.set_ylim(bottom=0)
        left.axhline(0.1, color="#888888", linewidth=0.8)
        right.set(title="EVR, mean over tokens", xlabel="tokens by norm, percentile")
        _scaled(right, "evr")
        left.legend(fontsize=8)


def bias_falls(folder: Path, name: str, logged: Logs, arms: Sequence[Arm], underflow: float) -> None:
    """The lowest bias over steps, and where its exponential becomes 0."""
    with canvas(folder, name, 1, 1, 3.2) as (_, (axis,)):
        for i, arm in enumerate(arms):
            found = curve(logged, arm.name, "rule.bias_lowest")
            if found is not None:
                _band(axis, found, PALETTE[i % 6], ("-", "--", "-.", ":")[i % 4], arm.name)
                if len(found.steps):
                    axis.plot(found.steps[-1:], found.mean[-1:], "o", color=PALETTE[i % 6], markersize=4)
        axis.axhline(underflow, color="#888888", linewidth=0.8, label="exp(τb) is 0 below")
        axis.set(title="lowest bias; a line ends where its setup became NaN", xlabel="step")
        axis.legend(fontsize=8)
