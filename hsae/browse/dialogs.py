"""What opens over the app: the keys, and the choice of another SAE."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from rich.table import Table
from rich.text import Text
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from hsae.errors import visible
from hsae.figures import NONE, fraction
from hsae.record import Row

KEYS = (
    ("↑ ↓  PgUp PgDn  g G", "walk the list; scroll a latent"),
    ("Enter", "open a latent, follow the marked link"),
    ("j k", "next latent, the one before, also while reading"),
    ("Tab  Shift-Tab", "next link to a latent, the one before"),
    ("b  Backspace", "back, from where a link was followed"),
    ("Esc", "back to the list; take the search back"),
    ("/", "search numbers, explanations, tokens, contexts"),
    ("s", "sort by the next column; so does its heading"),
    ("r", "turn the order round"),
    ("f", "all, live, dense, dead, explained latents"),
    ("c", "contexts: the strongest, or from all of its range"),
    ("e", "another SAE of the run"),
    ("q", "quit"),
)
WORDS = (
    "fires: share of tokens. max: highest activation. same: how many of the 16 strongest contexts peak on one token. "
    "dense: fires on more than 1% of tokens. score: balanced accuracy of the explanation."
)


class Help(ModalScreen[None]):
    """The keys."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,question_mark,enter", "dismiss", "close")]

    def compose(self) -> Iterator[Widget]:
        keys = Table.grid(padding=(0, 2, 0, 0))
        for key, what in KEYS:
            keys.add_row(Text(key, "bold"), Text(what))
        with VerticalScroll(classes="dialog"):
            yield Static(keys)
            yield Static(Text(f"\n{WORDS}", "dim"))


class Choose(ModalScreen[Row | None]):
    """The SAEs of a run.

    Args:
        rows: its table.
        now: the one that is shown.
    """

    AUTO_FOCUS = "OptionList"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,e", "dismiss(None)", "close")]

    def __init__(self, rows: tuple[Row, ...], now: Row) -> None:
        super().__init__()
        self._rows, self._now = rows, now

    def compose(self) -> Iterator[Widget]:
        with VerticalScroll(classes="dialog"):
            yield Static(Text("Another SAE of the run", "bold"))
            yield OptionList(*(Option(_words(row), disabled=row.diverged is not None) for row in self._rows))

    def on_mount(self) -> None:
        self.query_one(OptionList).highlighted = self._rows.index(self._now)

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        """Mark it, for terminals without colour."""
        for place, row in enumerate(self._rows):
            event.option_list.replace_option_prompt_at_index(
                place, _words(row, "▸" if place == event.option_index else " ")
            )

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self._rows[event.option_index])


def _words(row: Row, mark: str = " ") -> Text:
    l0 = NONE if row.l0 is None else f"{row.l0:.1f}"
    what = "diverged" if row.diverged else f"EVR {fraction(row.evr):>5}  L0 {l0:>6}"
    return Text(visible(f"{mark} {row.setup:16} seed {row.seed:<3} {what}"), no_wrap=True)
