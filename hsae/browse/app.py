"""The app: a list of latents, the chosen one in full, and what the keys do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import App
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.events import DescendantFocus, Resize
from textual.widget import Widget
from textual.widgets import Footer, Input, Static
from textual.worker import get_current_worker

from hsae.browse.catalogue import ORDERS, Catalogue
from hsae.browse.dialogs import Choose, Help
from hsae.browse.drawing import fit
from hsae.browse.listing import Listing
from hsae.browse.reading import Reading
from hsae.browse.themes import DARK, LIGHT
from hsae.browse.words import Words
from hsae.errors import UserError, visible
from hsae.evidence import Index, Subject
from hsae.inspect.ink import Ink
from hsae.interpret.results import read_explanations
from hsae.record import Row

EVERY = 0.2
"""seconds between two searches while text is still being read"""


class Search(Input):
    """What is typed is searched for at once; the list can be walked meanwhile."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "app.leave", "to the list"),
        Binding("escape", "app.close", "no search"),
        Binding("up", "app.walk(-1)", show=False),
        Binding("down", "app.walk(1)", show=False),
    ]


class Browser(App[Row]):
    """Search, sort and walk the latents of one run. Returns an SAE of the run whose index must be made first.

    Args:
        subject: the SAE to begin with.
        index: its evidence.
        ink: how strength is shown; without colour the terminal's own colours are kept.
        latent: the latent to begin with; None: the first of the list.
    """

    ENABLE_COMMAND_PALETTE = False
    HORIZONTAL_BREAKPOINTS: ClassVar[list[tuple[int, str]] | None] = [(0, "-narrow"), (132, "-wide")]
    VERTICAL_BREAKPOINTS: ClassVar[list[tuple[int, str]] | None] = [(0, "-low"), (18, "-high")]
    CSS_PATH = "app.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "search", "search", key_display="/"),
        Binding("s", "sort", "sort"),
        Binding("r", "reverse", "reverse", show=False),
        Binding("f", "filter", "filter"),
        Binding("c", "spread", "contexts"),
        Binding("e", "choose", "SAE"),
        Binding("enter", "open", "open"),
        Binding("b,backspace", "back", "back"),
        Binding("j", "walk(1)", "next", show=False),
        Binding("k", "walk(-1)", "before", show=False),
        Binding("escape", "close", "close", show=False),
        Binding("question_mark", "help", "help", key_display="?"),
        Binding("q", "quit", "quit"),
    ]

    def __init__(self, subject: Subject, index: Index, ink: Ink, latent: int | None = None) -> None:
        super().__init__(ansi_color=not ink.colour)
        for theme in (DARK, LIGHT):
            self.register_theme(theme)
        native = "ansi-light" if ink.light else "ansi-dark"
        self.theme = (LIGHT if ink.light else DARK).name if ink.colour else native
        self.ink, self._begin = ink, latent
        self._take(subject, index)
        self.sorted_by, self.backwards, self.filter, self.search = "same", False, "all", ""
        self.spread = False
        self.shown: int | None = None
        self.trail: list[int] = []

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """For the terminal's own colours."""
        return {"chosen": "ansi_default", "quiet": "ansi_default"}

    def _take(self, subject: Subject, index: Index) -> None:
        self.subject = subject
        self.catalogue = Catalogue(subject, index, read_explanations(subject))
        self.words: Words | None = None

    def compose(self) -> Iterator[Widget]:
        yield Static(id="head")
        for warning in self.subject.warnings:
            yield Static(Text(f" WARNING: {visible(warning)}", "bold yellow"), classes="warning")
        with Container(id="panes"):
            yield Listing(self.catalogue, self.ink)
            yield Reading(self.catalogue, self.ink)
        with Container(id="search"):
            yield Static(Text("/"), id="slash")
            yield Search(compact=True, select_on_focus=False)
            yield Static(id="found")
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        self.listing, self.reading = self.query_one(Listing), self.query_one(Reading)
        self.listing.focus()
        self._list()
        if self._begin is not None:
            self._go(self._begin)

    # What is shown.

    def _list(self) -> None:
        """The list, by the search, the filter and the order as they are."""
        catalogue = self.catalogue
        self.sorted_by = self.sorted_by if self.sorted_by in catalogue.orders else "same"
        self.filter = self.filter if self.filter in catalogue.filters else "all"
        among = catalogue.among(self.filter)
        if self.search and self.words is not None:
            among &= self.words.find(self.search)
        order = catalogue.order(self.sorted_by, self.backwards)
        latents = order[among[order]]
        if self.search.strip().isdecimal() and int(self.search) < catalogue.latents and among[int(self.search)]:
            number = int(self.search)  # The latent of that number, before those that have it in their text.
            latents = latents[(latents != number).argsort(kind="stable")]
        sought = f" for {visible(self.search)!r}" if self.search else ""
        among_what = f" among the {self.filter}" if self.filter != "all" else ""
        reading = self.words is not None and not self.words.whole and self.search
        nothing = "  still reading …" if reading else f"  nothing{sought}{among_what}"
        self.listing.sorted_by, self.listing.backwards = self.sorted_by, self.backwards
        self.listing.show(latents, self.shown, self.search, nothing)
        self._show(self.listing.chosen)
        self._head()

    def _show(self, latent: int | None) -> None:
        self.shown = latent
        notes = []
        if latent is not None and latent != self.listing.chosen:
            notes.append("not in this list")
        if self.trail:
            notes.append(f"b: back to {self.trail[-1]}")
        self.reading.show(latent, self.spread, " · ".join(notes), self.search)

    def _go(self, latent: int) -> None:
        """Show a latent, and put the cursor on it if it is in the list."""
        self.listing.go(latent)
        self._show(latent)

    def _head(self) -> None:
        width = self.size.width
        row, record = self.subject.row, self.subject.record
        count, every = len(self.listing.latents), self.catalogue.latents
        of = f"{count:,} of {every:,}" if count != every else f"{every:,}"
        order = ORDERS[self.sorted_by] + (", reversed" if self.backwards else "")
        right = Text(f" {of} {self.filter if self.filter != 'all' else 'latents'} · {order} ")
        if right.cell_len > width * 2 // 3:
            right = Text(f" {of} · {self.filter} · {self.sorted_by}{'↑' if self.backwards else '↓'} ")
        left = Text.assemble(" ", (f"{visible(row.setup)}, seed {row.seed}", "bold"))
        left.append(f" · run {visible(record.name)} · store {visible(self.subject.store)}")
        self.query_one("#head", Static).update(fit(left, width - right.cell_len).append_text(right))
        words = self.words
        reading = f"reading text, {100 * words.done // every}%" if words is not None and not words.whole else ""
        self.query_one("#found", Static).update(Text(reading or f"{count:,} found"))

    # What the parts tell.

    @on(Listing.Moved)
    def _moved(self, event: Listing.Moved) -> None:
        self._show(event.latent)

    @on(Listing.Opened)
    def _opened(self) -> None:
        self.action_open()

    @on(Listing.SortBy)
    def _sort_by(self, event: Listing.SortBy) -> None:
        if event.name in self.catalogue.orders:
            self.backwards = event.name == self.sorted_by and not self.backwards
            self.sorted_by = event.name
            self._list()

    @on(Reading.Followed)
    def _followed(self, event: Reading.Followed) -> None:
        if self.shown is not None:
            self.trail.append(self.shown)
        self._go(event.latent)

    @on(Input.Changed)
    def _changed(self, event: Input.Changed) -> None:
        self.search = event.value
        self._list()

    def on_descendant_focus(self, event: DescendantFocus) -> None:
        """Where there is no room for both, only what is looked at is shown."""
        self.screen.set_class(isinstance(event.widget, Reading), "-reading")

    def on_resize(self, event: Resize) -> None:
        self.call_after_refresh(self._head)

    def action_search(self) -> None:
        self.screen.add_class("-search")
        if self.words is None:
            self._begin_to_read()
        self.query_one(Input).focus()

    def _begin_to_read(self) -> None:
        self.words = Words(self.catalogue)
        self.run_worker(self._read, thread=True, exclusive=True, group="words")

    def _read(self) -> None:
        worker, words, said = get_current_worker(), self.words, time.monotonic()
        if words is None:
            return
        for _ in words.read():
            if worker.is_cancelled:
                return
            if time.monotonic() - said > EVERY:
                self.call_from_thread(self._list if self.search else self._head)
                said = time.monotonic()
        self.call_from_thread(self._list)

    def action_sort(self) -> None:
        orders = self.catalogue.orders
        self.sorted_by, self.backwards = orders[(orders.index(self.sorted_by) + 1) % len(orders)], False
        self._list()

    def action_reverse(self) -> None:
        self.backwards = not self.backwards
        self._list()

    def action_filter(self) -> None:
        filters = self.catalogue.filters
        self.filter = filters[(filters.index(self.filter) + 1) % len(filters)]
        self._list()

    def action_spread(self) -> None:
        self.spread = not self.spread
        self._show(self.shown)

    def action_walk(self, by: int) -> None:
        self.listing.step(by)

    def action_open(self) -> None:
        if self.shown is not None:
            self.screen.add_class("-reading")
            self.call_after_refresh(self.reading.focus)

    def action_links(self) -> None:
        self.action_open()
        self.call_after_refresh(self.reading.action_link, 1)

    def action_back(self) -> None:
        if self.trail:
            self._go(self.trail.pop())

    def action_leave(self) -> None:
        """From what is typed to what was found."""
        self.listing.focus()

    def action_close(self) -> None:
        """One step back: from a latent to the list, from a search to no search."""
        if self.focused is self.listing or isinstance(self.focused, Input):
            self.screen.remove_class("-search")
            self.query_one(Input).value = ""
        self.listing.focus()

    def action_help(self) -> None:
        self.push_screen(Help())

    def action_choose(self) -> None:
        self.push_screen(Choose(self.subject.record.result.rows, self.subject.row), self._chosen)

    def _chosen(self, row: Row | None) -> None:
        if row is None or row == self.subject.row:
            return
        subject = replace(self.subject, row=row)
        try:
            index = Index(subject.index_path)
        except UserError:
            self.exit(row)
            return
        self._take(subject, index)
        self.listing.catalogue = self.reading.catalogue = self.catalogue
        self.trail.clear()
        self.workers.cancel_group(self, "words")
        if self.search:
            self._begin_to_read()
        self._list()
