"""`hsae verify` reads every byte of stores and runs and names what is damaged; `hsae repair` mends what can be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["RepairConfig", "VerifyConfig", "repair", "verify"]


@dataclass(frozen=True)
class VerifyConfig:
    """What to verify. The words before the first flag are the paths: `hsae verify my-store my-run`."""

    paths: tuple[str, ...] = ()
    """stores, runs, or folders of them, by path or name, or a store's URL; none: all under the cache"""
    deep: bool = False
    """compute moments and counts anew from the activations, and hold them against the manifest"""


@dataclass(frozen=True)
class RepairConfig:
    """What to repair: `hsae repair my-store`."""

    path: str = ""
    """the store or run, by path or name"""
    trust_remote_code: bool = False
    """let the model's repository run its own code; what the manifest says of it is not heeded"""


def verify(settings: VerifyConfig, console: Console | None = None) -> int:
    """Read everything of stores and runs, and print what is sound and what is not.

    Returns:
        the exit code: 1 if anything is damaged, else 0.

    Raises:
        UserError: there is nothing to verify.
        KeyboardInterrupt: from the user; nothing was changed.
    """
    from hsae.verify.report import verify as run

    return run(settings, console)


def repair(settings: RepairConfig, console: Console | None = None) -> int:
    """Mend a store or a run: compute damaged shards again, write the tokeniser again, drop what is made anew anyway.

    Returns:
        the exit code: 1 if something is still damaged, else 0.

    Raises:
        UserError: there is no such store or run, or its model cannot be loaded.
    """
    from hsae.verify.mend import repair as run

    return run(settings, console)
