"""`hsae interpret`: an explanation and a score for every latent, by statistics on this machine or by a language model.

The explanation is made from one half of a latent's contexts and scored on the other half by two of delphi's protocols
(Paulo et al., *Automatically Interpreting Millions of Features*, arXiv 2410.13928): detection and fuzzing. Reading what
is there already (`hsae.interpret.results.read_explanations`) needs no PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hsae.config import require

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class InterpretConfig:
    """Explain and score the latents of a run. With nothing given: every setup of the newest run, on this machine."""

    run: str = ""
    """name or path of a run; empty: the newest"""
    setups: tuple[str, ...] = ()
    """setups to explain; none named: all that did not diverge"""
    seed: int | None = None
    """random seed of the setups; unset: the first of each"""
    on: str = ""
    """store to take evidence from; empty: the one trained on"""
    hook: str = ""
    """hook point of that store; empty: the one trained on"""
    explainer: Literal["local", "openai", "transformers"] = "local"
    """local: statistics of tokens and words; openai: any OpenAI-compatible endpoint; transformers: a local model"""
    model: str = ""
    """openai: the model's name there; transformers: a folder or a hub id"""
    endpoint: str = "https://api.openai.com/v1"
    """openai: where it is; the key comes from $OPENAI_API_KEY, if it wants one"""
    sample: int = 0
    """explain only so many latents of each setup, drawn evenly from the scorable ones; 0: all"""
    concurrency: int = 8
    """openai: requests at a time"""
    timeout: float = 60.0
    """openai: seconds to wait for an answer, before it is asked for again"""
    json: bool = False
    """print one JSON document"""

    def __post_init__(self) -> None:
        require(len(set(self.setups)) == len(self.setups), "setups", "different", self.setups)
        require(self.sample >= 0, "sample", "0 or above", self.sample)
        require(self.concurrency >= 1, "concurrency", "1 or above", self.concurrency)
        require(self.timeout > 0, "timeout", "above 0", self.timeout)
        require(self.explainer == "local" or self.model != "", "model", f"named for {self.explainer}", self.model)
        require(
            self.explainer != "openai" or self.endpoint.startswith(("http://", "https://")),
            "endpoint",
            "an http:// or https:// address",
            self.endpoint,
        )


def interpret(settings: InterpretConfig, console: Console | None = None) -> None:
    """Explain and score what has no explanation yet, keep it beside the index, and print a summary.

    Args:
        settings: what to explain, and by what.
        console: where to print; the standard output if not given. Progress goes to the standard error.

    Raises:
        UserError: a run, setup, store or model that is not there, or an endpoint that refuses.
        KeyboardInterrupt: on Ctrl-C; the same command goes on from what is saved.
    """
    from hsae.interpret.job import run

    run(settings, console)
