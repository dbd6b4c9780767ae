"""The list of latents: a line each, drawn when it comes into sight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Int
from rich.style import Style
from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from hsae.browse.catalogue import Catalogue
from hsae.browse.drawing import context_line, fit, shown_token, strip
from hsae.errors import visible
from hsae.evidence.latent import TOP
from hsae.figures import NONE, figure, percent
from hsae.inspect.ink import Ink

HEADINGS = {
    "latent": "latent",
    "fires": "fires",
    "max": "max",
    "same": "same",
    "token": "token",
    "score": "score",
    "explanation": "explanation",
    "context": "strongest context",
}
"""columns; those in `hsae.browse.catalogue.ORDERS` sort the list"""
FLUSH_RIGHT = ("latent", "fires", "max", "same", "score")
CURSOR = "▸"


@dataclass(frozen=True)
class Column:
    """A column of the list: cells `start … start + width`."""

    name: str
    start: int
    width: int


def columns(width: int, explained: bool) -> tuple[Column, ...]:
    """The columns that there is room for. The last one takes what is left."""
    fixed = {"latent": 7, "fires": 6}
    if width >= 56:
        fixed |= {"max": 7, "same": 5}
    if explained and width >= 60:
        fixed |= {"score": 5}
    fixed |= {"token": min(max(width // 8, 7), 16)}
    left = width - len(CURSOR) - sum(fixed.values()) - len(fixed)
    if explained and left > 0:
        both = left >= 56
        fixed |= {"explanation": left // 2 if both else left}
        left -= fixed["explanation"] + 1 if both else left
    if left > 0:
        fixed |= {"context": left}
    found, start = [], len(CURSOR)
    for name, cells in fixed.items():
        found.append(Column(name, start, cells))
        start += cells + 1
    return tuple(found)


class Listing(ScrollView, can_focus=True):
    """Latents in an order. Tells by `Moved` which is chosen, by `SortBy` which heading is clicked."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"listing--heading", "listing--cursor", "listing--note"}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "up", show=False),
        Binding("down,j", "move(1)", "down", show=False),
        Binding("pageup", "page(-1)", "page up", show=False),
        Binding("pagedown,space", "page(1)", "page down", show=False),
        Binding("home,g", "end(0)", "first", show=False),
        Binding("end,G", "end(1)", "last", show=False),
        Binding("tab", "app.links", "links"),
    ]

    class Moved(Message):
        """The user has moved the cursor to a latent."""

        def __init__(self, latent: int) -> None:
            self.latent = latent
            super().__init__()

    class SortBy(Message):
        """A heading was clicked."""

        def __init__(self, name: str) -> None:
            self.name = name
            super().__init__()

    class Opened(Message):
        """The chosen latent was clicked again."""

    def __init__(self, catalogue: Catalogue, ink: Ink) -> None:
        super().__init__()
        self.catalogue, self.ink = catalogue, ink
        self.latents: Int[np.ndarray, "place"] = np.arange(0)
        self.cursor = 0
        self.sorted_by, self.backwards = "", False
        self.sought = self.nothing = ""

    @property
    def chosen(self) -> int | None:
        """The latent under the cursor."""
        return int(self.latents[self.cursor]) if len(self.latents) else None

    def show(self, latents: Int[np.ndarray, "place"], keep: int | None, sought: str, nothing: str) -> None:
        """Another list.

        Args:
            latents: in the order to show.
            keep: the latent to put the cursor on; where it is not in the list, that is the first.
            sought: what to underline.
            nothing: what to say where there are none.
        """
        self.latents, self.sought, self.nothing, self.cursor = latents, sought, nothing, 0
        self._resize()
        if keep is None or not self.go(keep):
            self._put(0)
        self.refresh()

    def go(self, latent: int) -> bool:
        """Put the cursor on a latent; False if it is not in the list."""
        places = np.flatnonzero(self.latents == latent)
        if len(places):
            self._put(int(places[0]))
        return bool(len(places))

    def step(self, by: int) -> None:
        """Move the cursor so many lines."""
        self._move_to(self.cursor + by)

    def action_move(self, by: int) -> None:
        self.step(by)

    def action_page(self, by: int) -> None:
        self.step(by * max(self.size.height - 2, 1))

    def action_end(self, end: int) -> None:
        self._move_to(end * len(self.latents))

    def _move_to(self, place: int) -> None:
        self._put(place)
        if self.chosen is not None:
            self.post_message(self.Moved(self.chosen))

    def _put(self, place: int) -> None:
        """The cursor to a place, which is brought into sight."""
        if not len(self.latents):
            return
        old, self.cursor = self.cursor, min(max(place, 0), len(self.latents) - 1)
        # The heading covers the first line, so a line stands one lower than its place.
        top, room = round(self.scroll_target_y), max(self.size.height - 1, 1)
        if not top <= self.cursor < top + room:
            goal = self.cursor if self.cursor < top else self.cursor - room + 1
            self.scroll_to(y=goal, animate=False, immediate=True)
        for line in (old, self.cursor):
            self.refresh(Region(0, line + 1 - round(self.scroll_y), self.scrollable_content_region.width, 1))

    def _resize(self) -> None:
        self.virtual_size = Size(self.scrollable_content_region.width, len(self.latents) + 1)

    def on_resize(self) -> None:
        self._resize()
        self._put(self.cursor)

    def on_click(self, event: events.Click) -> None:
        place = event.y - 1 + round(self.scroll_y)
        if event.y == 0:
            for column in self._columns():
                if column.start <= event.x < column.start + column.width + 1:
                    self.post_message(self.SortBy(column.name))
        elif place < len(self.latents):
            again = place == self.cursor and event.chain > 1
            self._move_to(place)
            if again:
                self.post_message(self.Opened())

    def _columns(self) -> tuple[Column, ...]:
        return columns(self.scrollable_content_region.width, bool(self.catalogue.explanations))

    def render_line(self, y: int) -> Strip:
        width = self.scrollable_content_region.width
        if y == 0:
            return self._strip(self._heading(), "listing--heading")
        place = y - 1 + round(self.scroll_y)
        if place >= len(self.latents):
            note = Text(self.nothing if not len(self.latents) and y == 2 else "")
            return self._strip(fit(note, width), "listing--note")
        chosen = place == self.cursor
        return self._strip(self._row(int(self.latents[place]), chosen), "listing--cursor" if chosen else "")

    def _strip(self, text: Text, name: str) -> Strip:
        style = self.rich_style + (self.get_component_rich_style(name, partial=True) if name else Style())
        sought = "" if name == "listing--heading" else self.sought
        return strip(text, self.scrollable_content_region.width, style, sought, self.app.console)

    def _heading(self) -> Text:
        line = Text(" ")
        for column in self._columns():
            arrow = ("↑" if self.backwards else "↓") if column.name == self.sorted_by else ""
            heading = HEADINGS[column.name]
            heading = heading[: column.width - len(arrow)] + arrow
            line.append_text(fit(Text(heading), column.width, column.name in FLUSH_RIGHT)).append(" ")
        return line

    def _row(self, latent: int, chosen: bool) -> Text:
        line = Text(CURSOR if chosen else " ")
        for column in self._columns():
            cell = self._cell(column.name, latent, column.width)
            line.append_text(fit(cell, column.width, column.name in FLUSH_RIGHT)).append(" ")
        return line

    def _cell(self, name: str, latent: int, width: int) -> Text:
        index, catalogue = self.catalogue.index, self.catalogue
        live, explanation = bool(index.firings[latent]), catalogue.explanations.get(latent)
        match name:
            case "latent":
                return Text(str(latent))
            case "fires":
                return Text(percent(float(index.rate[latent])) if live else NONE)
            case "max":
                return Text(figure(float(index.maximum[latent])) if live else NONE)
            case "same":
                same = index.selectivity[latent]
                return Text(f"{TOP * same:.0f}" if same else NONE)
            case "token":
                token = int(catalogue.top_token[latent])
                return Text(shown_token(catalogue.token(token)) if token >= 0 else "")
            case "score":
                return Text(f"{explanation.score:.2f}" if explanation and explanation.score is not None else NONE)
            case "explanation" if explanation is not None:
                return Text(visible(explanation.text), "italic")
            case "context" | "explanation" if name == "context" or not self._has("context"):
                glance = catalogue.glance(latent)
                return context_line(glance, width, self.ink) if glance else Text("never fires", "dim")
            case _:
                return Text()

    def _has(self, name: str) -> bool:
        return any(column.name == name for column in self._columns())
