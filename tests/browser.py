"""A real headless Chromium for the tests of the pages: what a page logs, asks for or lets run counts against it.

pytestmark = needs_browser

@pytest.fixture(scope="module")
def chromium() -> Iterator[Chromium]:
    with launched() as chromium:
        yield chromium

def test_something(chromium):
    with chromium.tab("http://127.0.0.1:8000/", dark=True) as page:  # a playwright Page
        page.get_by_role("link", name="27").click()
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--font-render-hinting=none")


def find_browser() -> str | None:
    """The browser to drive: $HSAE_BROWSER, else the first of `NAMES` on the PATH."""
    return os.environ.get("HSAE_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)


# Where the whole suite must pass, a browser that is missing is a failure.
needs_browser = pytest.mark.skipif(
    os.environ.get("CI") != "true" and (find_browser() is None or find_spec("playwright") is None),
    reason="needs playwright and a Chromium: install one, or name it in HSAE_BROWSER",
)


class Chromium:
    """A running browser; tabs are strangers to each other (no shared storage)."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser

    @contextmanager
    def tab(
        self,
        url: str | Path,
        width: int = 1280,
        height: int = 800,
        *,
        dark: bool = False,
        touch: bool = False,
        forgive: Sequence[str] = (),
    ) -> Iterator[Page]:
        """Open a page; at the end fail if it logged an error or a warning, threw, or asked another place for anything.

        Args:
            url: where; a path is a file.
            width: of the window, in CSS pixels.
            height: of the window.
            dark: prefer the dark scheme.
            touch: a phone, with taps in place of a mouse.
            forgive: parts of messages that are expected.
        """
        address = url.absolute().as_uri() if isinstance(url, Path) else url
        context = self._browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            has_touch=touch,
            is_mobile=touch,
            reduced_motion="reduce",
        )
        wrong: list[str] = []
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: wrong.append(f"thrown: {error}"))
        page.on("console", lambda m: wrong.append(f"{m.type}: {m.text}") if m.type in ("error", "warning") else None)
        page.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}"))
        page.on("request", lambda asked: None if _home(asked.url, address) else wrong.append(f"asked: {asked.url}"))
        try:
            page.goto(address)
            yield page
        finally:
            context.close()
        unexpected = [line for line in wrong if not any(part in line for part in forgive)]
        assert not unexpected, "\n".join(unexpected)


@contextmanager
def launched() -> Iterator[Chromium]:
    """Start the browser, and stop it at the end. Within, no asyncio loop can run in the same thread."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=list(FLAGS))
        try:
            yield Chromium(browser)
        finally:
            browser.close()


def _home(asked: str, address: str) -> bool:
    """Whether a request goes where the page came from: for a file, to that very file. Blobs and data stay inside."""
    there, home = urlsplit(asked), urlsplit(address)
    if there.scheme in ("data", "blob", "about"):
        return True
    if home.scheme == "file":
        return (there.scheme, there.path) == (home.scheme, home.path)
    return (there.scheme, there.netloc) == (home.scheme, home.netloc)


def opening(path: Path, times: int = 5) -> list[float]:
    """Seconds from asking for a page of `hsae inspect --html` until its table can be used, in tabs of their own."""
    seconds = []
    with launched() as chromium:
        for _ in range(times):
            with chromium.tab(path, 1440, 900) as page:
                page.wait_for_selector("body[data-ready]")
                seconds.append(page.evaluate("+document.body.dataset.ready") / 1000)
    return seconds


if __name__ == "__main__":
    print(" ".join(f"{seconds:.2f}" for seconds in opening(Path(sys.argv[1]))), "s until the table can be used")
