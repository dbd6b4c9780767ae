"""`hsae import`: an SAE that another tool trained becomes a run that every verb accepts. A format is one file here.

Nothing in the folder is executed: JSON, safetensors, and PyTorch files read with weights only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hsae.config import require

if TYPE_CHECKING:
    from rich.console import Console

    from hsae.run import Run


@dataclass(frozen=True)
class ImportConfig:
    """What to import. Formats, told by what is in the folder: SAELens, sparsify, dictionary_learning, safetensors."""

    folder: str = ""
    """folder of the SAE"""
    name: str = ""
    """name of the run; empty: made from the format and the folder's name"""
    store: str = ""
    """store to measure it on; empty: the newest whose hook point and width fit"""
    hook: str = ""
    """hook point that it belongs to; empty: as its files say"""
    measure: bool = True
    """fill the run's table from held-out tokens of a store"""
    held_out: int = 16384
    """tokens at the store's end that the table is measured on"""
    baselines: bool = True
    """put what an SAE must beat into the table: the mean, PCA, k-means"""

    def __post_init__(self) -> None:
        require(self.held_out >= 1, "held_out", "1 or above", self.held_out)
        require(self.measure or not self.store, "store", "unset with measure = false", self.store)


def import_sae(settings: ImportConfig, console: Console | None = None) -> Run:
    """Make a run of an SAE that another tool trained.

    Args:
        settings: which folder, and what to measure it on.
        console: where to print the run's table; None prints nothing.

    Returns:
        the run. Its SAE takes raw activations; `Result.origin` says where it comes from.

    Raises:
        UserError: no SAE there, one of a format or a function that cannot be represented, a damaged file, a store that
            does not fit, or a run of that name.
    """
    from hsae.importing._job import bring

    return bring(settings, console)
