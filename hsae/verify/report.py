"""`hsae verify`: checks one after the other under one bar, then a table, then every damage."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hsae.errors import Interrupted, visible
from hsae.figures import size
from hsae.progress import Bar, say
from hsae.verify import VerifyConfig
from hsae.verify.finding import UNSEALED, Advance, Finding, bytes_in
from hsae.verify.places import Place, places
from hsae.verify.runs import check_run
from hsae.verify.stores import check_store, size_of

STYLES = {"sound": "green", "unfinished": "yellow", "damaged": "bold red"}


def verify(settings: VerifyConfig, console: Console | None = None) -> int:
    """See `hsae.verify.verify`."""
    console = console or Console()
    here = places(settings.paths)
    found = []
    try:
        with Bar(console, "verify", sum(map(_bytes, here)), unit="bytes") as bar:
            for place in here:
                found += [examine(place, bar.advance, settings.deep)]  # in turn: what is done is counted
    except KeyboardInterrupt:
        raise Interrupted(f"stopped after {len(found)} of {len(here)}; nothing was changed") from None
    show(found, console)
    return 1 if any(finding.damages for finding in found) else 0


def examine(place: Place, advance: Advance = lambda passed: None, deep: bool = False) -> Finding:
    """Everything of one store or run."""
    return check_store(place, deep, advance) if place.kind == "store" else check_run(place, advance)


def show(found: list[Finding], console: Console) -> None:
    """A line for each store and run, then every damage."""
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", min_width=8)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in found:
        note = ", ".join(filter(None, [finding.note, size(finding.size) if finding.size else ""]))
        state = Text(finding.state, STYLES[finding.state])
        table.add_row(finding.place.kind, Text(visible(finding.place.name)), state, Text(visible(note)))
    console.print(table)
    if any(UNSEALED in finding.note for finding in found):
        say(console, f"\n{UNSEALED}: made by an older hsae; a change in its table of checksums would not be seen")
    for line in (line for finding in found for line in finding.damages):
        say(console, f"\n{line}" if console.is_terminal else line)


def _bytes(place: Place) -> int:
    if isinstance(place.folder, str):
        return 0
    return size_of(place) if place.kind == "store" else bytes_in(place.folder)
