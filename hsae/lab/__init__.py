"""The lab: other Hebbian systems on the same rules. Each is a verb of `hsae lab`, and a chapter of one report.

Nothing else of the package imports it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hsae.config import require

Scale = Literal["tiny", "small", "full"]


@dataclass(frozen=True)
class LabConfig:
    """What all experiments of the lab have in common."""

    scale: Scale = "small"
    """tiny: seconds, to see that it works; small: minutes on two cores; full: the source's sizes"""
    out: str = ""
    """folder of the report and of what is computed for it; empty: under cache/lab"""
    workers: int = 0
    """trainings side by side, in processes of one thread each; 0: as many as there are cores, or one on a GPU"""
    device: str = "auto"
    """auto, cpu, cuda or mps"""

    def __post_init__(self) -> None:
        require(self.workers >= 0, "workers", "0 or above", self.workers)
