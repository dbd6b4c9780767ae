"""`hsae inspect`: a run's table and latents worth a look, or one latent with its contexts; drawn or as JSON."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from hsae.config import require

if TYPE_CHECKING:
    from rich.console import Console

    from hsae.evidence.survey import Advance
    from hsae.inspect.view import LatentView, Overview, Subject


@dataclass(frozen=True)
class InspectConfig:
    """What to look at. With nothing given: the newest run, on the store it was trained on."""

    run: str = ""
    """name or path of a run; empty: the newest"""
    setup: str = ""
    """setup to look into; empty: the run's first"""
    seed: int | None = None
    """random seed of the setup; unset: its first"""
    latent: int | None = None
    """latent to show; unset: the run's table and the latents worth a look"""
    pick: bool = False
    """show the most selective latent, instead of naming one"""
    on: str = ""
    """store to take evidence from; empty: the one trained on"""
    hook: str = ""
    """hook point of that store; empty: the one trained on"""
    contexts: int = 10
    """top contexts to show"""
    json: bool = False
    """print one JSON document"""

    def __post_init__(self) -> None:
        require(self.contexts >= 1, "contexts", "1 or above", self.contexts)

    def command(self) -> str:
        """The command that shows the same run, setup and store without a latent."""
        words = ["hsae", "inspect"]
        for name in ("run", "setup", "seed", "on", "hook"):
            if (value := getattr(self, name)) not in ("", None):
                words += [f"--{name}", str(value)]
        return shlex.join(words)


def inspect(config: InspectConfig, console: Console | None = None) -> None:
    """Print what the config asks for. A run and a store are enough: no language model, no network.

    Args:
        config: what to look at.
        console: where to print; the standard output if not given. Progress goes to the standard error.

    Raises:
        UserError: a run, setup, seed, latent, store or hook point that is not there, or a store of another width.
    """
    from rich.console import Console

    from hsae.inspect import terminal, view
    from hsae.progress import Bar

    console = console or Console()
    subject = view.open_subject(config)
    errors = Console(stderr=True)
    with Bar(errors if errors.is_terminal else None, "reading", subject.store.manifest.tokens) as bar:
        shown = _look(config, subject, bar.advance)
    if config.json:
        console.file.write(json.dumps(view.finite(asdict(shown)), indent=1, allow_nan=False) + "\n")
        return
    ink = terminal.Ink.of(console)
    for part in terminal.draw(shown, ink, console.width, config.command()):
        console.print(part)


def _look(config: InspectConfig, subject: Subject, advance: Advance) -> Overview | LatentView:
    from hsae.inspect import view

    latent = config.latent
    if latent is None:
        overview = view.overview(subject, advance)
        worth = overview.most_selective or overview.most_active
        if not (config.pick and worth):
            return overview
        latent = worth[0].latent
    return view.latent_view(subject, latent, config.contexts, advance)
