"""A figure by matplotlib: SVG whose bytes depend on the numbers alone, and PNG. Readable at 700 pixels' width."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsae.errors import UserError
from hsae.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
WIDTH, DPI = 7.0, 150
SETTINGS: Any = {
    "svg.hashsalt": "hsae",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "figure.constrained_layout.use": True,
}


def available(verb: str) -> None:
    """Raise where the figures of a verb cannot be drawn.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError(
            f"hsae {verb} draws with matplotlib, which is not installed: pip install hsae[figures]"
        ) from None


@contextlib.contextmanager
def canvas(folder: Path, name: str, rows: int, columns: int, height: float) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of rows x columns panels, written to `folder` as NAME.svg and NAME.png when the body is done."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(WIDTH, height))
        panels = figure.subplots(rows, columns, squeeze=False)
        yield figure, list(panels.flat)
        with replacing(folder / f"{name}.svg") as aside:
            figure.savefig(aside, format="svg", metadata={"Date": None, "Creator": "hsae"})
        with replacing(folder / f"{name}.png") as aside:
            figure.savefig(aside, format="png", dpi=DPI, metadata={"Software": None})
