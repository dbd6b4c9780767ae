"""`hsae serve`: the runs of the cache in a web browser: their latents, SAEs side by side, your own text, steering."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hsae.config import require

if TYPE_CHECKING:
    from rich.console import Console

SHORTEST = 12
"""characters of the shortest token that may be given"""


@dataclass(frozen=True)
class ServeConfig:
    """Where to listen. With nothing given: this machine alone can reach it."""

    host: str = "127.0.0.1"
    """address to listen on; one that other machines can reach goes with a token"""
    port: int = 8484
    """port; 0 takes a free one"""
    token: str = ""
    """what a browser must show, 12 letters or digits or more; empty: made, and printed, where others can reach it"""
    open: bool = False
    """open the browser"""
    device: str = "auto"
    """where the language model runs: cuda, mps, cpu, or auto"""
    trust_remote_code: bool = False
    """let a language model's repository run its own code"""

    def __post_init__(self) -> None:
        require(0 <= self.port <= 65535, "port", "0 to 65535", self.port)
        require(self.host != "", "host", "a name or an address", self.host)
        usable = self.token.isascii() and self.token.replace("-", "").replace("_", "").isalnum()
        # Not the value itself: an error line lands in logs.
        require(
            self.token == "" or (usable and len(self.token) >= SHORTEST),
            "token",
            f"{SHORTEST} or more of the letters a-z and A-Z, digits, - and _",
            f"one of {len(self.token)} characters",
        )

    @property
    def local(self) -> bool:
        """Whether this machine alone can reach the server."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def serve(settings: ServeConfig, console: Console | None = None) -> None:
    """Serve until Ctrl-C, which ends the process.

    Args:
        settings: where to listen.
        console: where to say so; the standard output if not given.

    Raises:
        UserError: the port is in use, or the address is none of this machine's.
    """
    from hsae.serve.listen import listen

    listen(settings, console)
