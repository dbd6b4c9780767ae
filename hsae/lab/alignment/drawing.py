"""The figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hsae.canvas import PALETTE, canvas


def over_time(folder: Path, name: str, titles: Sequence[str], lines: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """Two quantities over steps; lines of (step, one, other)."""
    with canvas(folder, name, 1, 2, 3.0) as (_, axes):
        for column, (axis, title) in enumerate(zip(axes, titles, strict=True), 1):
            for color, (label, line) in zip(PALETTE, lines.items(), strict=False):
                axis.plot([p[0] for p in line], [p[column] for p in line], color=color, label=label)
            axis.set(title=title, xlabel="step", xscale="log")
        axes[1].legend(fontsize=8)


def by_batch(folder: Path, name: str, sized: Mapping[float, Mapping[str, Any]]) -> None:
    """A1 against the batch's size, measured and by the formula."""
    with canvas(folder, name, 1, 1, 3.0) as (figure, (axis,)):
        for i, (gamma, of) in enumerate(sized.items()):
            colour = PALETTE[i % len(PALETTE)]
            for line, style in zip(of["lines"], (".-", "--", ":"), strict=True):
                axis.plot(of["sizes"], line, style, color=colour, label=f"γ = {gamma:g}" if style == ".-" else None)
            axis.plot(*zip(*of["trained"], strict=True), "o", color=colour, fillstyle="none")
        for style, label in (("--", "formula, at rest"), (":", "formula, anywhere")):
            axis.plot([], [], style, color="#555555", label=label)
        axis.set(xscale="log", xlabel="samples in the batch", title="cosine of signal and Hebb, A1")
        figure.legend(loc="outside right upper", fontsize=8)


def phases(folder: Path, name: str, linear: Mapping[str, Any], mlp: tuple[Any, Any, Any, Any]) -> None:
    """Alignment by noise and decay, 0 white: what `theory.descend` told, and the MLP on axes of the values tried.

    Args:
        mlp: γ, σ, A1 [γ][σ], and for each γ the σ at which theory has 0.
    """
    import numpy as np

    gammas, sigmas, cosines, limits = mlp
    with canvas(folder, name, 1, 2, 3.4) as (figure, axes):
        scaled = np.array(linear["measured"]) / (linear["inputs"] + 2)
        most = float(abs(scaled).max()) or 1.0
        first = axes[0].pcolormesh(linear["sigmas"], linear["gammas"], scaled, cmap="RdBu_r", vmin=-most, vmax=most)
        fine = max(linear["gammas"]) * np.linspace(0, 1, 100) ** 2
        axes[0].plot(
            np.sqrt(fine / (linear["inputs"] * linear["outputs"])) / (1 + fine), fine, "k", label="closed form"
        )
        axes[0].set(title="linear regression: ⟨g, H⟩, scaled", xlabel="noise σ", ylabel="decay γ")
        second = axes[1].pcolormesh(np.array(cosines), cmap="RdBu_r", vmin=-1, vmax=1)
        middles = np.arange(len(sigmas)) + 0.5
        at = np.interp(limits, sigmas, middles, right=np.nan)
        axes[1].plot(at, np.arange(len(gammas)) + 0.5, "k", label="linear theory")
        axes[1].set_xticks(middles, [f"{s:g}".replace("0.", ".") for s in sigmas])
        axes[1].set_yticks(np.arange(len(gammas)) + 0.5, [f"{g:g}" for g in gammas])
        axes[1].set(title="regression MLP: A1", xlabel="noise σ")
        for axis, mesh in zip(axes, (first, second), strict=True):
            axis.grid(False)
            axis.set_xlim(axis.dataLim.x0, axis.dataLim.x1)
            axis.legend(fontsize=8, loc="upper left")
            figure.colorbar(mesh, ax=axis)
