"""`hsae browse`: a full-screen terminal app to search, sort and walk the latents of a run."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hsae.config import require
from hsae.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class BrowseConfig:
    """What to walk through. With nothing given: the newest run, on the store it was trained on."""

    run: str = ""
    """name or path of a run; empty: the newest"""
    setup: str = ""
    """setup to begin with; empty: the run's first"""
    seed: int | None = None
    """random seed of the setup; unset: its first"""
    latent: int | None = None
    """latent to begin with; unset: the first of the list"""
    on: str = ""
    """store to take evidence from; empty: the one trained on"""
    hook: str = ""
    """hook point of that store; empty: the one trained on"""

    def __post_init__(self) -> None:
        require(self.latent is None or self.latent >= 0, "latent", "0 or above", self.latent)


def browse(config: BrowseConfig, console: Console | None = None) -> None:
    """Open the app, and come back when it is left. The evidence index is built before it opens, where there is none.

    Args:
        config: what to begin with.
        console: the terminal; the standard output if not given. Progress goes to the standard error.

    Raises:
        UserError: no terminal, no `textual`, or a run, setup, seed, latent, store or hook point that is not there.
        KeyboardInterrupt: on Ctrl-C while an index is built; the same command goes on from there.
    """
    from hsae.evidence import open_index, open_subject
    from hsae.inspect.ink import Ink
    from hsae.terminal import Terminal

    console = console or Terminal()
    if not console.is_terminal or console.is_dumb_terminal or not sys.stdin.isatty():
        raise UserError("hsae browse needs a terminal to draw on; in a pipe or a file, `hsae inspect` says the same")
    from hsae.browse.app import Browser

    latent = config.latent
    subject = open_subject(config.run, config.setup, config.seed, config.on, config.hook)
    while True:
        index = open_index(subject, Terminal(stderr=True))
        if latent is not None:
            index.check(latent)
        app = Browser(subject, index, Ink.of(console), latent)
        # Right-to-left text in the order of its characters: a terminal that turns it round would mix up the columns.
        console.file.write("\x1b[8l")
        try:
            chosen = app.run()
        finally:
            console.file.write("\x1b[8h")
        if app.return_code:
            sys.exit(app.return_code)
        if chosen is None:
            return
        # An SAE without an index was chosen: that takes a pass over the store, with its progress in plain sight.
        latent, subject = None, replace(subject, row=chosen)
