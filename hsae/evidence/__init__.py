"""What a store says about the latents of an SAE: how often each fires, how strongly, on which tokens and where.

    subject = open_subject("my-run", setup="bp")
    index = open_index(subject)            # built on first use: one pass over the store
    index.latent(27).top[0].tokens         # token ids; `Pieces(subject.tokenizer)` makes text of them

Numbers only; the terminal, the page and the server draw them. A latent *fires* at a position where its activation is
above zero. Positions that the store leaves out (keep=False) are no evidence: they are neither encoded nor counted.
Reading an index needs no PyTorch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from hsae.errors import UserError
from hsae.evidence.index import Index
from hsae.evidence.latent import LatentEvidence
from hsae.evidence.subject import Subject, open_subject

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Index", "LatentEvidence", "Subject", "open_index", "open_subject"]


def open_index(
    subject: Subject, console: Console | None = None, advance: Callable[[int], None] = lambda passed: None
) -> Index:
    """The index of a subject; built, in one pass over the store, where there is none yet.

    Args:
        subject: which SAE, and the store.
        console: where to show progress; None shows nothing.
        advance: told how many positions have been passed since the last call, if it is built; it may raise, to stop.
            What is done is then saved, as on Ctrl-C, and the same call goes on from there.

    Raises:
        UserError: the SAE diverged, or a file is damaged.
    """
    path = subject.index_path
    if path.exists():
        try:
            index = Index(path)
        except UserError:
            pass  # Damaged: it is made anew.
        else:
            if all(index.facts.get(key) == value for key, value in subject.facts.items()):
                # Left behind by a kill after the index was written.
                with contextlib.suppress(OSError):
                    path.with_suffix(".partial").unlink(missing_ok=True)
                return index
    from hsae.evidence.build import build

    return Index(build(subject, console, advance))
