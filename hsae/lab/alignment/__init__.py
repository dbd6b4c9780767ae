"""`hsae lab alignment`: how far learning signals point the Hebbian way, and why (arXiv 2505.18069)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from hsae.config import require
from hsae.lab import LabConfig

if TYPE_CHECKING:
    from rich.console import Console

Experiment = Literal["theorems", "sweep", "activations", "batch", "phase", "classification", "saes"]
EXPERIMENTS: tuple[Experiment, ...] = get_args(Experiment)


@dataclass(frozen=True)
class AlignmentConfig(LabConfig):
    """Measure the alignment of learning signals with the Hebbian direction under weight decay and noise."""

    experiments: tuple[Experiment, ...] = EXPERIMENTS
    """which to do; all"""
    store: str = ""
    """activation store for saes: a name under cache/activations or a path; empty: the bundled model's, harvested"""
    hook: str = ""
    """hook point of that store; needed only if it has several"""
    images: str = ""
    """labelled images for classification: CIFAR-10, Fashion-MNIST, a folder of class folders; empty: digits"""
    gammas: tuple[float, ...] = (0.0, 5e-5, 5e-4, 5e-3)
    """weight decays; the paper's are compared with the paper"""
    batch: int = 256
    """samples in a training batch"""
    pseudo_error_scale: float = 1.0
    """how strong the error of the random network is that stands for a teacher"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.experiments), "experiments", f"some of {', '.join(EXPERIMENTS)}", self.experiments)
        distinct = len(set(self.gammas)) == len(self.gammas) > 0
        require(distinct and all(0 <= g <= 1 for g in self.gammas), "gammas", "different, from 0 to 1", self.gammas)
        require(self.batch > 0, "batch", "1 or above", self.batch)


def alignment(settings: AlignmentConfig, console: Console | None = None) -> Path:
    """Do the experiments that are not done yet, and write the report; its path.

    Args:
        settings: which experiments, and at what scale.
        console: where to show progress and tables; None shows nothing.

    Raises:
        UserError: images or a store that cannot be read, a batch larger than the data, matplotlib is not installed.
        KeyboardInterrupt: on Ctrl-C; the same call goes on from there.
    """
    from hsae.lab.alignment.job import chapter
    from hsae.lab.chapter import publish

    return publish("alignment", settings, chapter, console)
