"""A small language model that learns by backpropagation, by Hebb's rule, or by both at once, and why both go wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from hsae.config import require
from hsae.errors import choices
from hsae.lab import LabConfig
from hsae.lab.hybrid_lm.arms import ARMS, PARTS, Plasticity

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console


@dataclass(frozen=True)
class HybridLMConfig(LabConfig):
    """Train a small transformer by backpropagation, hybrid and Hebbian, as the source did; and its defects mended."""

    parts: tuple[str, ...] = ("ordering", "defects", "repairs", "bdh")
    """what to do: ordering (always done), defects, repairs, bdh, own (what --own says), or arms by name"""
    text: str = ""
    """stories in a .txt (<|endoftext|> or blank lines between), .jsonl or .parquet file; empty: the bundled ones"""
    model: Literal["gpt", "bdh"] = "gpt"
    """the source's transformer, or BDH, whose attention is a Hebbian memory"""
    tokenizer: str = ""
    """a folder, or a name on the hub, of a BPE; empty: the text's bytes, at full scale gpt2"""
    seeds: tuple[int, ...] = (0, 1)
    """of the ordering's trainings; all others have the first"""
    steps: int = 0
    """training steps; 0: by the scale"""
    own: Plasticity = field(default_factory=Plasticity)
    """an arm of your own; the default is the source's hybrid"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for part in self.parts:
            known = {*PARTS, "bdh", "own", *ARMS}
            require(part in known, "parts", f"a part or an arm ({choices(part, known)})", part)
        require(len(set(self.seeds)) == len(self.seeds) > 0, "seeds", "different, at least one", self.seeds)
        require(self.steps >= 0 and self.steps % 10 == 0, "steps", "0 or a multiple of 10", self.steps)


def hybrid_lm(settings: HybridLMConfig, console: Console | None = None) -> Path:
    """Do the trainings that are not done yet, and write the report; its path.

    Args:
        settings: what to train, and on what.
        console: where to show progress and the report; None shows nothing.

    Raises:
        UserError: the text, the tokeniser or the device is not there; matplotlib is not installed.
        KeyboardInterrupt: on Ctrl-C; the same call goes on from there.
    """
    from hsae.lab.chapter import publish
    from hsae.lab.hybrid_lm.job import chapter

    return publish("hybrid-lm", settings, chapter, console)
