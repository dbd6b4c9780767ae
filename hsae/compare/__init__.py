"""`hsae compare`: SAEs side by side: their metrics, the Pareto front, and which latents they share.

From Python, and from the server:

    from hsae.compare.pair import Comparison, Side, compare_saes
    from hsae.compare.sample import rows_of
    from hsae.compare.fragment import STYLE, fragment

    rows = rows_of(store, hook, tokens=65_536)              # [token, width]
    a, b = Side.of("bp", sae_a, rows), Side.of("hebb", sae_b, rows)
    comparison: Comparison = compare_saes(a, b, rows)       # frozen, pure; dataclasses.asdict makes JSON of it
    html = fragment(comparison, link)                       # a <section class="compare">, styled by STYLE
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hsae.config import require

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class CompareConfig:
    """What to compare. With nothing given: all SAEs of the newest run.

    A run, or RUN:SETUP, or RUN:SETUP:SEED; as many as you like: hsae compare one-run:bp other-run:hebb-tied:0
    """

    runs: tuple[str, ...] = ()
    """runs by name or path, or SAEs of them: RUN:SETUP or RUN:SETUP:SEED; empty: the newest run"""
    setups: tuple[str, ...] = ()
    """of these only those setups; empty: all that did not diverge"""
    seeds: tuple[int, ...] = ()
    """of these only those seeds; empty: all"""
    on: str = ""
    """store to compare on; empty: the one trained on (the first run's, where they differ)"""
    hook: str = ""
    """hook point of that store; empty: the one trained on"""
    tokens: int = 65_536
    """tokens to compare on, rounded up to whole sequences, from the store's end"""
    threshold: float = 0.7
    """similarity above which two matched latents count as shared"""
    match: bool = True
    """match latents; --no-match: metrics and the Pareto front alone"""
    losses: tuple[str, ...] = ()
    """files that `hsae evaluate --json` printed: their loss recovered joins the table and the plot"""
    html: str = ""
    """file to write a page to"""
    json: bool = False
    """print one JSON document"""

    def __post_init__(self) -> None:
        require(self.tokens >= 1, "tokens", "1 or above", self.tokens)
        require(0 < self.threshold < 1, "threshold", "between 0 and 1", self.threshold)
        require(self.html == "" or not self.html.endswith("/"), "html", "a file", self.html)


def compare(settings: CompareConfig, console: Console | None = None) -> None:
    """Print what the settings ask for; write the page.

    Args:
        settings: what to compare.
        console: where to print; the standard output if not given. Progress goes to the standard error.

    Raises:
        UserError: a run, setup, seed, store or file that is not there, or SAEs that cannot be compared.
    """
    from hsae.compare.job import show

    show(settings, console)
