"""`hsae export`: a trained SAE in another tool's format, written by ourselves. A format is one file in this folder.

What a format cannot say is folded where the function stays the same, else refused; the reader of a format never gets
another function than the one that was trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hsae.config import require

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console


@dataclass(frozen=True)
class ExportConfig:
    """What to export, and to which format; delphi and neuronpedia take activations from a store as well."""

    run: str = ""
    """name or path of a run; empty: the newest"""
    to: str = ""
    """saelens, sparsify, dictionary-learning, safetensors, delphi or neuronpedia"""
    setup: str = ""
    """setup to export; empty: the run's first"""
    seed: int | None = None
    """random seed of the setup; unset: its first"""
    out: str = ""
    """folder to make; empty: exports/RUN-SETUP-SEED-FORMAT in the cache"""
    on: str = ""
    """store that provenance and activations come from; empty: the one trained on"""
    tokens: int = 0
    """delphi: positions of the store to encode, from its start; 0: all"""
    splits: int = 5
    """delphi: files to split the latents into"""

    def __post_init__(self) -> None:
        require(self.tokens >= 0, "tokens", "0 or above", self.tokens)
        require(self.splits >= 1, "splits", "1 or above", self.splits)


def export(settings: ExportConfig, console: Console | None = None) -> Path:
    """Write an SAE of a run in another tool's format.

    Args:
        settings: what to export, and where to.
        console: where to say what was written; None says nothing. Progress goes to the standard error.

    Returns:
        the folder, which is whole: it is written aside and renamed.

    Raises:
        UserError: no such format, run, setup or seed, an SAE that diverged or that the format cannot say, a store that
            the format needs and that is not there, or a folder that holds something.
    """
    from hsae.export._job import write

    return write(settings, console)
