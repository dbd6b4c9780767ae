"""NM-Hebb: convolutional networks with a gated Hebbian regulariser, then metric learning with consolidation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hsae.config import require
from hsae.errors import choices
from hsae.lab import LabConfig

if TYPE_CHECKING:
    from rich.console import Console

PARTS = ("comparison", "sanity", "gate", "margin", "consolidation")


@dataclass(frozen=True)
class NMHebbConfig(LabConfig):
    """Train networks plainly, with NM-Hebb's phase 1, and with both its phases, for as many epochs each.

    Parts: comparison (of those), sanity (what the Hebbian term does to filters), gate, margin, consolidation.
    """

    parts: tuple[str, ...] = PARTS
    """what to do: the words after `nm-hebb`"""
    images: str = ""
    """labelled images: CIFAR-10, Fashion-MNIST, a folder or .zip of class folders; empty: scikit-learn's digits"""
    backbones: tuple[Literal["small", "resnet18", "mobilenetv2"], ...] = ()
    """networks; empty: small, and at full scale resnet18 and mobilenetv2"""
    layer: str = ""
    """the hooked convolution, such as layer2.0.conv1; empty: each network's own"""
    reading: Literal["source", "centred", "local"] = "source"
    """the Hebbian term: the source's; with mean activations centred over filters; or moving weights alone"""
    gate: Literal["monotone", "prior", "meta", "constant", "learned"] = "monotone"
    """what scales the penalties: a fixed rising function of the loss; learned with a prior; learned from images set
    aside; 0.5; learned from the loss itself, as the source has it, which closes it"""
    lambda_h: float = 1.0
    """weight of the Hebbian term"""
    lambda_c: float = 0.01
    """weight of the consolidation"""
    mu: float = 1.0
    """weight of the cross-entropy in phase 2"""
    margin: float = 1.0
    """distance beyond which pairs of different classes are left alone; embeddings have length 1"""
    lr: float = 0.05
    """learning rate at the start of either phase; it falls to 0 along a cosine"""
    epochs: tuple[int, ...] = ()
    """of phase 1 and of phase 2; empty: by the scale"""
    seeds: tuple[int, ...] = ()
    """empty: 0 1 2, at tiny scale 0"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for part in self.parts:
            require(part in PARTS, "parts", f"a part ({choices(part, PARTS)})", part)
        require(len(self.parts) > 0, "parts", "at least one", self.parts)
        require(len(self.epochs) in (0, 2) and min(self.epochs, default=1) > 0, "epochs", "two, above 0", self.epochs)
        require(len({*self.seeds}) == len(self.seeds), "seeds", "different", self.seeds)
        require(self.lr > 0, "lr", "above 0", self.lr)
        for name in ("lambda_h", "lambda_c", "mu", "margin"):
            require(getattr(self, name) >= 0, name, "0 or above", getattr(self, name))


def nm_hebb(settings: NMHebbConfig, console: Console | None = None) -> Path:
    """Do what is not done yet; write the report, and print it.

    Args:
        settings: what to train, and on what.
        console: where to show progress; None shows nothing.

    Raises:
        UserError: images, layer or device are not there; matplotlib or scikit-learn is not installed.
        KeyboardInterrupt: on Ctrl-C; the same call goes on from there.
    """
    from hsae.lab.chapter import publish
    from hsae.lab.nm_hebb.job import chapter

    return publish("nm-hebb", settings, chapter, console)
