"""`hsae push` and `hsae pull`: a run to the Hugging Face hub with a model card, and from there into the cache."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hsae.config import require

if TYPE_CHECKING:
    from rich.console import Console

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
NAME = re.compile(r"\w[\w.+-]*")


@dataclass(frozen=True)
class PushConfig:
    """What to upload, and where to."""

    run: str = ""
    """name or path of a run; empty: the newest"""
    to: str = ""
    """repository on the hub, OWNER/NAME; made if it is not there"""
    private: bool = False
    """make the repository a private one; refused where it is public already"""
    revision: str = ""
    """branch to commit to, made if it is not there; empty: the main one"""
    message: str = ""
    """message of the commit; empty: one that names the run"""
    license: str = ""
    """licence that the model card names, as the hub spells it: mit, apache-2.0, …; empty: none"""
    formats: tuple[str, ...] = ()
    """also upload the SAEs as other tools read them, a folder for each: saelens, sparsify, … (see hsae export)"""
    dry_run: bool = False
    """write what would be uploaded into the cache's pushes/ folder instead, and list it"""

    def __post_init__(self) -> None:
        require(not self.to or REPOSITORY.fullmatch(self.to) is not None, "to", "OWNER/NAME", self.to)
        fits = re.fullmatch(r"[\w.-]*", self.license) is not None
        require(fits, "license", "one word, such as mit", self.license)
        require(len(set(self.formats)) == len(self.formats), "formats", "all different", self.formats)


@dataclass(frozen=True)
class PullConfig:
    """What to download, and what to call it."""

    repository: str = ""
    """repository on the hub, OWNER/NAME"""
    name: str = ""
    """name of the run here; empty: the repository's"""
    revision: str = ""
    """branch, tag or commit; empty: the main branch"""

    def __post_init__(self) -> None:
        fits = not self.repository or REPOSITORY.fullmatch(self.repository) is not None
        require(fits, "repository", "OWNER/NAME", self.repository)
        require(not self.name or NAME.fullmatch(self.name) is not None, "name", "letters, digits, . + - _", self.name)


def push(settings: PushConfig, console: Console | None = None) -> None:
    """Upload a run in one commit: its config, weights, metrics and table, and a model card made from them.

    Args:
        settings: what to upload, and where to.
        console: where to print; the standard output if not given.

    Raises:
        UserError: no such run, no token, no right to write, or the hub cannot be reached.
    """
    from hsae.sharing.upload import push as upload

    upload(settings, console)


def pull(settings: PullConfig, console: Console | None = None) -> None:
    """Download a run into the cache. It is there only once all of it is, and it has been read and found good.

    Args:
        settings: what to download, and what to call it.
        console: where to print; the standard output if not given.

    Raises:
        UserError: no such repository, no run in it, another run of that name here, or the hub cannot be reached.
    """
    from hsae.sharing.download import pull as download

    download(settings, console)
