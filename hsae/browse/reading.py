"""One latent in full: lines to scroll through, and links to follow."""

from __future__ import annotations

from typing import ClassVar

from rich.cells import cell_len
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from hsae.browse.catalogue import Catalogue
from hsae.browse.drawing import Link, Page, page, strip
from hsae.inspect.ink import Ink


class Reading(ScrollView, can_focus=True):
    """Everything about a latent. Tells by `Followed` where a link leads."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"reading--link"}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "scroll(-1)", "up", show=False),
        Binding("down", "scroll(1)", "down", show=False),
        Binding("pageup", "page(-1)", "page up", show=False),
        Binding("pagedown,space", "page(1)", "page down", show=False),
        Binding("home,g", "scroll(-100000)", "top", show=False),
        Binding("end,G", "scroll(100000)", "bottom", show=False),
        Binding("tab", "link(1)", "next link", show=False),
        Binding("shift+tab", "link(-1)", "link before", show=False),
        Binding("enter", "follow", "follow", show=False),
    ]

    class Followed(Message):
        """A link to another latent."""

        def __init__(self, latent: int) -> None:
            self.latent = latent
            super().__init__()

    def __init__(self, catalogue: Catalogue, ink: Ink) -> None:
        super().__init__()
        self.catalogue, self.ink = catalogue, ink
        self.latent: int | None = None
        self.spread, self.note, self.sought = False, "", ""
        self.page = Page((), ())
        self.link: int | None = None

    def show(self, latent: int | None, spread: bool, note: str, sought: str) -> None:
        """Show a latent (None: nothing), from its top unless it is the one that is shown.

        Args:
            latent: which.
            spread: contexts from all of its range, instead of the strongest.
            note: words beside its number.
            sought: what to underline.
        """
        if latent != self.latent:
            self.link = None
            self.scroll_to(y=0, animate=False, immediate=True)
        self.latent, self.spread, self.note, self.sought = latent, spread, note, sought
        self._lay()

    def _lay(self) -> None:
        width = self.scrollable_content_region.width
        if self.latent is None or width < 1:
            self.page = Page((), ())
        else:
            self.page = page(self.catalogue, self.latent, self.ink, width, self.spread, self.note)
        self.virtual_size = Size(width, len(self.page.lines))
        self.refresh()

    def on_resize(self) -> None:
        self._lay()

    def action_scroll(self, by: int) -> None:
        self.scroll_relative(y=by, animate=False)

    def action_page(self, by: int) -> None:
        self.scroll_relative(y=by * max(self.size.height - 1, 1), animate=False)

    def action_link(self, by: int) -> None:
        """To the next link or the one before; from the last one on, and from the first one back, to none."""
        count = len(self.page.links)
        place = (0 if self.link is None else self.link + 1) + by
        place %= count + 1
        self.link = place - 1 if place else None
        if self.link is not None:
            line = self.page.links[self.link].line
            top, room = round(self.scroll_y), self.size.height
            if not top <= line < top + room:
                self.scroll_to(y=line - room // 2, animate=False, immediate=True)
        self.refresh()

    def action_follow(self) -> None:
        """Go where the marked link leads."""
        if self.link is not None:
            self.post_message(self.Followed(self.page.links[self.link].latent))

    def on_click(self, event: events.Click) -> None:
        """Follow the link under the mouse."""
        offset = event.get_content_offset(self)
        if offset is None:
            return
        line = offset.y + round(self.scroll_y)
        for link in self.page.links:
            if link.line == line and self._cells(link)[0] <= offset.x < self._cells(link)[1]:
                self.post_message(self.Followed(link.latent))

    def _cells(self, link: Link) -> tuple[int, int]:
        text = self.page.lines[link.line].plain
        return cell_len(text[: link.start]), cell_len(text[: link.end])

    def render_line(self, y: int) -> Strip:
        width, line = self.scrollable_content_region.width, y + round(self.scroll_y)
        if line >= len(self.page.lines):
            return Strip.blank(width, self.rich_style)
        text = self.page.lines[line].copy()
        link = None if self.link is None else self.page.links[self.link]
        if link is not None and link.line == line:
            style = self.get_component_rich_style("reading--link", partial=True)
            text.stylize_before(style, link.start, link.end)
        return strip(text, width, self.rich_style, self.sought, self.app.console)
