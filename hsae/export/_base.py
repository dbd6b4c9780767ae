"""What an exporter is: one class in one file of this folder, whose name is the format's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hsae.export import ExportConfig
from hsae.export._plain import Activation, Plain
from hsae.record import Row
from hsae.run import Run
from hsae.sae import SAE
from hsae.store import Store

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Subject:
    """What is exported.

    Attributes:
        run, row: the run, and the SAE's line in its table.
        sae: the SAE at the scale of the activations.
        plain: the same in the form that formats speak.
        store: where activations come from: the run's store, or the one named instead; None where it is gone.
        trained_on: the same where it is the one that the run was trained on, else None.
        hook: the hook point.
        provenance: plain data on where the SAE comes from, for formats that keep extra keys.
    """

    run: Run
    row: Row
    sae: SAE
    plain: Plain
    store: Store | None
    trained_on: Store | None
    hook: str
    provenance: dict[str, Any]

    @property
    def model(self) -> str:
        """The language model's name, without the folders of the machine it was on."""
        return str(self.provenance["model"]["name"])

    @property
    def architecture(self) -> str:
        """The class of the language model; empty if unknown."""
        return str(self.run.result.model.get("architecture", ""))


class Exporter(ABC):
    """Writes one format. An exporter has no state."""

    takes: ClassVar[tuple[Activation, ...]] = ("relu", "topk", "jumprelu", "gated")
    """activation functions that the format can say"""
    needs_store: ClassVar[bool] = False
    """it holds activations, so that the store must be there"""
    load: ClassVar[str]
    """how the format's own tool reads it; {folder} stands for the folder, {module} for what `write` returns"""

    @abstractmethod
    def write(self, subject: Subject, settings: ExportConfig, folder: Path, errors: Console | None) -> str:
        """Write all files into an empty folder.

        Args:
            subject: what to write.
            settings: the exporter's options.
            folder: an empty folder.
            errors: where to show progress; None shows nothing.

        Returns:
            the folder in it that the tool loads; empty where that is the folder itself.
        """
