"""What the processes of a harvest have done, for the bar; and Ctrl-C, said once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from hsae.harvesting.feed import Batch, Feed
from hsae.progress import Bar
from hsae.store import StoreWriter
from hsae.store.writer import JOURNAL

# Seconds between two looks at what the other processes have done.
LOOK = 1.0


class Watch:
    """Looks after one process's harvest, and at the others'.

    Args:
        writer: of the store.
        feed: this process's.
        bar: of all processes' tokens.
        shard_tokens: in a shard.
        others: whether there are other processes to look at.
        interrupted: was Ctrl-C pressed?
        say: prints a line.
    """

    def __init__(
        self,
        writer: StoreWriter,
        feed: Feed,
        bar: Bar,
        shard_tokens: int,
        others: bool,
        interrupted: Callable[[], bool],
        say: Callable[[str], None],
    ) -> None:
        self._bar, self._shard_tokens, self.interrupted, self._say = bar, shard_tokens, interrupted, say
        self._journal, self._own = writer.folder / JOURNAL, len(writer.records)
        self._begun, self._said, self._others = False, False, 0
        self._look_again = time.monotonic() + LOOK if others else float("inf")
        feed.impatient = lambda: interrupted() and not self._begun

    def after(self, batch: Batch) -> None:
        """A batch is done."""
        self._begun = True
        self._bar.advance(batch.tokens.numel())
        self._look()
        if self.interrupted() and not self._said:
            self._said = True
            self._say("finishing this shard; Ctrl-C again stops at once")

    def whole(self) -> None:
        """A shard is computed."""
        self._begun, self._own = False, self._own + 1

    def wait(self) -> None:
        """While the others work on.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed.
        """
        self._look()
        if self.interrupted():
            raise KeyboardInterrupt

    def _look(self) -> None:
        if time.monotonic() < self._look_again:
            return
        self._look_again = time.monotonic() + LOOK
        entries = sum(not name.startswith(".") for name in os.listdir(self._journal))
        if (new := entries - self._own - self._others) > 0:
            self._others += new
            self._bar.advance(new * self._shard_tokens)
