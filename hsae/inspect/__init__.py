"""`hsae inspect`: a run's table and latents worth a look, or one latent with its contexts; drawn or as JSON."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsae.config import require
from hsae.lists import latent_list

if TYPE_CHECKING:
    from rich.console import Console

    from hsae.evidence import Index, Subject


@dataclass(frozen=True)
class InspectConfig:
    """What to look at. With nothing given: the newest run, on the store it was trained on."""

    run: str = ""
    """name or path of a run; empty: the newest"""
    setup: str = ""
    """setup to look into; empty: the run's first"""
    seed: int | None = None
    """random seed of the setup; unset: its first"""
    latent: str = ""
    """latents to show, such as 27 or 27,30-40; empty: the run's table and the latents worth a look"""
    pick: bool = False
    """show the most selective latent, instead of naming one"""
    on: str = ""
    """store to take evidence from; empty: the one trained on"""
    hook: str = ""
    """hook point of that store; empty: the one trained on"""
    contexts: int = 10
    """top contexts to show, 16 at most"""
    html: str = ""
    """write a page to this file instead: of the latents named, or of all"""
    json: bool = False
    """print one JSON document"""

    def __post_init__(self) -> None:
        require(self.contexts >= 1, "contexts", "1 or above", self.contexts)
        latent_list(self.latent)

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
    from hsae.evidence import open_index, open_subject
    from hsae.terminal import Terminal

    console = console or Terminal()
    subject = open_subject(config.run, config.setup, config.seed, config.on, config.hook)
    latents = latent_list(config.latent)
    if subject.row.diverged and not (latents or config.pick or config.html):
        _print_overview(config, subject, None, console)
        return
    errors = Terminal(stderr=True)
    index = open_index(subject, errors)
    for latent in latents:
        index.check(latent)
    if config.html:
        from hsae.inspect.page import write_page

        write_page(subject, index, latents or None, Path(config.html), errors)
        return
    if config.pick and not latents:
        latents = tuple((index.most_selective(1) or index.most_active(1))[:1])
    if latents:
        _print_latents(config, subject, index, latents, console)
    else:
        _print_overview(config, subject, index, console)


def _print_overview(config: InspectConfig, subject: Subject, index: Index | None, console: Console) -> None:
    from hsae.inspect import terminal, view

    shown = view.overview(subject, index)
    if config.json:
        _print_json(asdict(shown), console)
        return
    for part in terminal.draw_overview(shown, terminal.Ink.of(console), console.width, config.command()):
        console.print(part)


def _print_latents(
    config: InspectConfig, subject: Subject, index: Index, latents: tuple[int, ...], console: Console
) -> None:
    from rich.rule import Rule

    from hsae.inspect import terminal, view
    from hsae.interpret.results import read_explanations

    explained = read_explanations(subject)
    views = (view.latent_view(subject, index, latent, explained.get(latent)) for latent in latents)
    if config.json:
        documents = [one.document() for one in views]
        _print_json(documents[0] if len(documents) == 1 else documents, console)
        return
    ink = terminal.Ink.of(console)
    for number, one in enumerate(views):
        if number:
            console.print()
            console.print(Rule(style="dim"))
        for part in terminal.draw_latent(one, ink, console.width, config.contexts, config.command()):
            console.print(part)


def _print_json(document: Any, console: Console) -> None:
    from hsae.plain import finite

    console.file.write(json.dumps(finite(document), indent=1, allow_nan=False) + "\n")
