"""`hsae paper`: reproduce *Hebbian Learning through the Lens of Sparse Autoencoders* from an activation store.

Kurdiukov and Razzhigaev, 2025 (OpenReview 2ZoozRf41d). One command trains what the paper compares, in ordinary run
folders, and writes a report beside its figures. Cut off at any instant and given again it goes on, and nothing that is
trained is trained again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hsae.config import require

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

PARTS = ("table", "ablation", "init", "latents")


@dataclass(frozen=True)
class PaperConfig:
    """What to reproduce, on which store, at which scale. With nothing given: all of it, small, on the newest store."""

    store: str = ""
    """store to train on: a name under cache/activations or a path; empty: the newest"""
    hook: str = ""
    """hook point; needed only if the store has several"""
    scale: Literal["small", "medium", "large", "full"] = "small"
    """steps x tokens: small 1,000 x 1,024, medium 4,000 x 2,048, large 16,000 x 4,096, full 62,500 x 16,384"""
    parts: tuple[Literal["table", "ablation", "init", "latents"], ...] = PARTS
    """table: Table 1 and its figures; ablation: default initialisation; init: its scale; latents: what latents mean"""
    steps: int | None = None
    """steps of the table, instead of the scale's; the other parts' follow in proportion"""
    batch_tokens: int | None = None
    """tokens in one step, instead of the scale's"""
    latents: int = 3200
    """size of the dictionary"""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """seeds of the table; the other parts take the first few of them, as many as the scale says"""
    held_out: int = 16384
    """tokens at the store's end to measure on, and the window in which the dictionary is counted"""
    out: str = ""
    """folder of the report; empty: cache/paper/STORE-SCALE"""
    device: str = "auto"
    """auto, cpu, cuda or mps"""

    def __post_init__(self) -> None:
        require(
            len(self.parts) > 0 and len(set(self.parts)) == len(self.parts) and {*self.parts} <= {*PARTS},
            "parts",
            f"one or more different of {', '.join(PARTS)}",
            self.parts,
        )
        require(self.steps is None or self.steps >= 2, "steps", "2 or above", self.steps)
        require(self.batch_tokens is None or self.batch_tokens >= 1, "batch_tokens", "1 or above", self.batch_tokens)
        require(self.latents >= 2, "latents", "2 or above", self.latents)
        require(
            len(self.seeds) > 0 and len(set(self.seeds)) == len(self.seeds) and min(self.seeds) >= 0,
            "seeds",
            "different, 0 or above, at least one",
            self.seeds,
        )
        require(self.held_out >= 1, "held_out", "1 or above", self.held_out)


def paper(settings: PaperConfig, console: Console | None = None) -> Path:
    """Train what is not trained yet, measure, and write the report.

    Args:
        settings: what to reproduce.
        console: where to show progress and the main table; None shows nothing.

    Returns:
        the path of `report.md`; `report.json` with all numbers and the figures lie beside it.

    Raises:
        UserError: the store, the hook point or the sizes do not allow it, or matplotlib is not there.
        KeyboardInterrupt: on Ctrl-C, after a checkpoint; the same call goes on from there.
    """
    from hsae.paper.job import reproduce

    return reproduce(settings, console)
