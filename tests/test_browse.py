"""`hsae browse`, driven by its keys and its mouse on a run and a store made by hand."""

from __future__ import annotations

import asyncio
import io
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.cells import cell_len
from rich.console import Console
from textual.pilot import Pilot
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from hsae.browse import BrowseConfig, browse
from hsae.browse.app import Browser
from hsae.browse.catalogue import Catalogue
from hsae.browse.drawing import page
from hsae.browse.words import LIMIT, Words
from hsae.errors import UserError
from hsae.evidence import open_index, open_subject
from hsae.inspect.ink import Ink
from hsae.interpret.results import Book, Explanation, Score, path_of, write_book
from hsae.record import Result, Row
from hsae.run import RunWriter
from hsae.sae import SAE
from hsae.sae.relu import ReLU
from hsae.store import StoreWriter

HOOK = "blocks.4.hook_resid_pre"
SEQUENCES, CONTEXT, LATENTS, LIVE = 40, 24, 60, 40
PLAIN = [f"word{i}" for i in range(30)]
RARE = [f"Rare{s}" for s in range(SEQUENCES)]
BIDI = "a\u202eb\u2066c"
HEBREW = "שלום"
HOSTILE = [
    "[bold]",
    "[/]",
    "[@click=app.quit]x",
    BIDI,
    HEBREW,
    "\x1b[31m",
    "new\nline",
    "漢字",
    "x" * 100_000,
    "\u0301\u200d",
]


def make(cache: Path, words: list[str] = PLAIN, rare: list[str] = RARE) -> None:
    """Latent j < 40 fires at position 3 + j % 20 of every sequence s from j on, by 1 + s / 8 + j / 100; no other does.

    Position 0 has a token of the sequence's own, which does not count. The run has bp, bp-tied with the latents the
    other way round, and hebb-tied, which diverged.
    """
    x = torch.zeros(SEQUENCES, CONTEXT, LATENTS)
    for j in range(LIVE):
        for s in range(j, SEQUENCES):
            x[s, 3 + j % 20, j] = 1 + s / 8 + j / 100
    tokens = (torch.arange(SEQUENCES)[:, None] + torch.arange(CONTEXT)) % len(words)
    tokens[:, 0] = len(words) + torch.arange(SEQUENCES)
    keep = torch.ones(SEQUENCES, CONTEXT, dtype=torch.bool)
    keep[:, 0] = False
    writer = StoreWriter(cache / "activations" / "store", {"test": "store"}, "fp32")
    writer.write(0, tokens, {HOOK: x}, {HOOK: keep}, {HOOK: {"first": SEQUENCES}})
    tables = {"model": {"fingerprint": "m"}, "tokenizer": {}, "text": {}, "harvest": {}}
    writer.finish(shard_sequences=SEQUENCES, context=CONTEXT, **tables)
    vocabulary = {word: i for i, word in enumerate([*words, *rare, "a"])}
    (writer.folder / "tokenizer").mkdir()
    Tokenizer(WordLevel(vocabulary, unk_token="a")).save(str(writer.folder / "tokenizer" / "tokenizer.json"))
    one = torch.eye(LATENTS)
    zero = torch.zeros(LATENTS)
    saes = {
        (name, 0): SAE(W, zero.clone(), W.clone(), zero.clone(), ReLU())
        for name, W in (("bp", one), ("bp-tied", one.flip(0)))
    }
    rows = [Row(name, 0, evr=0.9, l0=3.0) for name in ("bp", "bp-tied")]
    rows.append(Row("hebb-tied", 0, diverged="at step 12: MSE is [NaN]"))
    setups = {row.setup: {"decoder": "backprop"} for row in rows}
    RunWriter(cache / "runs" / "run", {"setup": setups}).finish(
        saes,
        Result(
            version=1,
            store="store",
            store_fingerprint=open_store_fingerprint(writer.folder),
            model={"fingerprint": "m"},
            hook=HOOK,
            width=LATENTS,
            latents=LATENTS,
            scale=1.0,
            folded=False,
            steps=5,
            tokens=100,
            held_out=100,
            dead_window=100,
            rows=tuple(rows),
        ),
    )


def open_store_fingerprint(folder: Path) -> str:
    from hsae.store.manifest import Manifest

    return Manifest.read(folder).fingerprint


def explain(cache: Path) -> None:
    """Latent 7 is explained well, 3 badly, 50 without a score, and 9 not at all."""
    subject = open_subject("run")
    score = Score(0.9, 0.8, 0.95, 9, 10, 9, 10)
    settings = {"explainer": "local"}
    explanations = [
        Explanation(7, "the [bold]seventh wonder[/]", detection=score),
        Explanation(3, "a third thing", detection=replace(score, value=0.55)),
        Explanation(50, "never seen", why="never fires"),
        Explanation(9, "", why="no tokens"),
    ]
    write_book(path_of(subject, settings), subject, Book(settings, {e.latent: e for e in explanations}))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with a store, a run trained on it, and the index of its first SAE. Not to be written to."""
    folder = tmp_path_factory.mktemp("browse")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HSAE_CACHE", str(folder))
        make(folder)
        open_index(open_subject("run"))
    return folder


@pytest.fixture
def run(made: Path, cache: Path) -> Path:
    """A copy of it, of the test's own."""
    shutil.copytree(made, cache)
    return cache


def app_of(ink: Ink | None = None, setup: str = "", latent: int | None = None) -> Browser:
    subject = open_subject("run", setup)
    return Browser(subject, open_index(subject), ink or Ink(True), latent)


Act = Callable[[Browser, Pilot], Awaitable[None]]


def drive(act: Act, app: Browser | None = None, size: tuple[int, int] = (80, 24)) -> Browser:
    """Open the app, do things to it, and close it."""
    app = app or app_of()

    async def go() -> None:
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await act(app, pilot)

    asyncio.run(go())
    return app


async def press(pilot: Pilot, *keys: str) -> None:
    await pilot.press(*keys)
    await pilot.pause()


async def find(app: Browser, pilot: Pilot, query: str) -> list[int]:
    """Type a search, wait until all text is read, and say which latents are listed."""
    await press(pilot, "slash", *query)
    await app.workers.wait_for_complete()
    await pilot.pause()
    return app.listing.latents.tolist()


def screen(app: Browser) -> list[str]:
    """What stands on the terminal, line by line."""
    return ["".join(segment.text for segment in line) for line in app.screen._compositor.render_strips()]


def rows(app: Browser) -> list[str]:
    """The lines of the list, without its heading."""
    return [app.listing.render_line(y).text for y in range(1, app.listing.size.height)]


def read(app: Browser) -> str:
    """All that is said of the latent that is shown."""
    return "\n".join(line.plain for line in app.reading.page.lines)


@pytest.mark.usefixtures("run")
class TestList:
    def test_begins_with_the_most_selective_and_reads_the_first(self) -> None:
        async def act(app: Browser, pilot: Pilot) -> None:
            # All tokens differ from one sequence to the next: all that fire in 16 sequences have a selectivity of
            # 1/16 and stand by their firings; those in fewer have none; those that never fire come last.
            dense = [j for j in range(LIVE) if (SEQUENCES - j) / (SEQUENCES * (CONTEXT - 1)) > 0.01]
            selective = [j for j in range(25) if j not in dense]
            rest = [j for j in range(25, LIVE) if j not in dense]
            wanted = [*selective, *rest, *(j for j in dense if j < 25), *(j for j in dense if j >= 25)]
            assert app.listing.latents.tolist() == [*wanted, *range(LIVE, LATENTS)]
            first = wanted[0]
            assert rows(app)[0].split()[:2] == ["▸", str(first)]
            assert f"latent {first} of 60" in read(app)
            assert "60 latents · most selective first" in screen(app)[0]
            assert "bp, seed 0 · run run · store store" in screen(app)[0]

        drive(act)

    def test_a_row_says_how_often_how_strongly_and_on_what(self) -> None:
        async def act(app: Browser, pilot: Pilot) -> None:
            row = app.listing.render_line(1).text.split()
            # Latent 5 fires in 35 sequences, at position 8, most strongly in sequence 39, whose token there is 47 - 30.
            assert row[:5] == ["▸", "5", "3.80%", "5.93", "1"]  # 5.925
            assert row[5].startswith("␣word")
            assert "word17" in row
            assert app.listing.render_line(0).text.split()[:4] == ["latent↓", "fires", "max", "same"]

        async def at_five(app: Browser, pilot: Pilot) -> None:
            await press(pilot, "s", "s", "s")
            app.listing.scroll_to(y=5, animate=False, immediate=True)
            await pilot.pause()
            await act(app, pilot)

        drive(at_five, app_of(latent=5), size=(120, 24))

    def test_sorts_by_key(self) -> None:
        async def act(app: Browser, pilot: Pilot) -> None:
            seen = []
            for _ in range(5):
                await press(pilot, "s")
                seen.append((app.sorted_by, app.listing.latents.tolist()))
            dead = list(range(LIVE, LATENTS))
            by_name = dict(seen)
            assert [name for name, _ in seen] == ["fires", "max", "latent", "token", "same"]
            assert by_name["fires"] == [*range(LIVE), *dead]
            assert by_name["max"] == [*range(LIVE - 1, -1, -1), *dead]
            assert by_name["latent"] == list(range(LATENTS))
            tokens = [app.catalogue.token(int(app.catalogue.top_token[j])) for j in by_name["token"][:LIVE]]
            assert tokens == sorted(tokens)
            assert len(set(tokens)) > 5
            assert by_name["token"][LIVE:] == dead

        drive(act)

    def test_is_turned_round_with_the_dead_still_last(self) -> None:
        async def act(app: Browser, pilot: Pilot) -> None:
            await press(pilot, "s", "r")
            assert app.listing.latents.tolist() == [*range(LIVE - 1, -1, -1), *range(LIVE, LATENTS)]
            assert "fires↑" in app.listing.render_line(0).text
            assert "most active first, reversed" in screen(app)[0]

        drive(act)

    def test_a_click_on_a_heading_sorts_and_another_turns_it_round(self) -> None:
        async def act(app: Browser, pilot: Pilot) -> None:
            x = app.listing.render_line(0).text.index("max")
            await pilot.click("Listing", offset=(x, 0))
            await pilot.pause()
            assert (app.sorted_by, app.backwards) == ("max", False)
            await pilot.click("Listing", offset=(x, 0))
            await pilot.pause()
            assert (app.sorted_by, app.backwards) == ("max", True)
            assert app.listing.latents[:LIVE].tolist() == list(range(LIVE))
            await pilot.click("Listing", offset=(app.listing.render_line(0).text.index("strongest"), 0))
            await pilot.pause()
            assert (app.sorted_by, app.backwards) == ("max", True)

        drive(act)

    def test_filters(self) -> None:
        async def act(app: Browser, pilot: Pilot) -> None:
            await press(pilot, "s", "f")
            assert app.listing.latents.tolist() == list(range(LIVE))
            assert "40 of 60 live" in screen(app)[0]
            await press(pilot, "f")
            # More than 1% of 920 positions: 10 sequences and more.
            assert app.listing.latents.tolist() == list(range(31))
            await press(pilot, "f")
            assert app.listing.latents.tolist() == list(range(LIVE, LATENTS))
            assert "never fires" in rows(app)[0]
            assert "It never fires on this store." in read(app)
            await press(pilot, "f")
            assert (app.filter, len(app.listing.latents)) == ("all", LATENTS)

        drive(act)

    def test_the_cursor_stays_on_its_latent_when_the_list_changes(self) -> None:
        async def act(app: Browser, pilot: Pilot) -> None:
            await press(pilot, "s", *["down"] * 30, "r", "f")
            assert app.listing.chosen == app.shown == 30
            assert any(row.split()[:2] == ["▸", "30"] for row in rows(app))

        drive(act, app_of(latent=0))

    def test_walking(self) -> None:
        async def act(app: Browser, pilot: Pilot) -> None:
            await press(pilot, "s", "down", "j", "j", "up")
            assert app.listing.chosen == app.shown == 2
            assert "latent 2 of" in read(app)
            height = app.listing.size.height
            await press(pilot, "pagedown")
            assert app.shown == 2 + height - 2
            await press(pilot, "end")
            assert app.shown == LATENTS - 1
            assert rows(app)[-1].split()[:2] == ["▸", "59"]
            await press(pilot, "down", "home", "k")
            assert app.shown == 0
            assert rows(app)[0].split()[:2] == ["▸", "0"]

        drive(act, app_of(latent=0))

    def test_a_click_chooses_and_a_double_click_opens(self) -> None:
        async def act(app: Browser, pilot: Pilot) -> None:
            await press(pilot, "s", *["down"] * 20)
            top = int(rows(app)[0].split()[0])
            await pilot.click("Listing", offset=(5, 3))
            await pilot.pause()
            assert app.shown == top + 2
            await pilot.click("Listing", offset=(5, 3), times=2)
            await pilot.pause()
            assert app.focused is app.reading

        drive(act)

    def test_begins_at_the_latent_asked_for(self) -> None:
        async def act(app: Browser, pilot: Pilot) -> None:
            assert app.shown == app.listing.chosen == 33
            assert any(row.split()[:2] == ["▸", "33"] for row in rows(app))

        drive(act, app_of(latent=33))

    def test_reads_only_what_is_in_sight(self) -> None:
        app = app_of()
        index, asked = app.catalogue.index, set()

        def latent(number: int, read: Callable = index.latent) -> object:
            asked.add(number)
            return read(number)

        index.latent = latent
        app.catalogue = app.catalogue.__class__(app.subject, index, {})

        async def act(app: Browser, pilot: Pilot) -> None:
            in_sight = app.listing.latents[: app.listing.size.height].tolist()
            links = {link.latent for link in app.reading.page.links}
            assert asked <= {*in_sight, *links}

        drive(act, app)
        assert asked


@pytest.mark.usefixtures("run")
class TestSearch:
    def test_finds_what_stands_in_contexts(self) -> None:
        async def act(app: Browser, pilot: Pilot) -> None:
            await press(pilot, "s")
            # Sequence 30 is among the 16 strongest (of 39 … 24, or from j on) of latents up to 30, and its first token
            # stands in the window of 19 tokens before the peak where j % 20 ≤ 16. Case does not matter.
            assert await find(app, pilot, "rare30") == [j for j in range(31) if j % 20 <= 16]
            assert "28 found" in screen(app)[-2]
            assert "28 of 60 latents" in screen(app)[0]
            await press(pilot, "backspace", "2")
            # Sequence 32: to that of latent 32.
            assert app.listing.latents.tolist() == [j for j in range(33) if j % 20 <= 16]

        drive(act)

    def test_underlines_what_was_found(self) -> None:
        async def act(app: Browser, pilot: Pilot) -> None:
            await find(app, pilot, "rare39")
            strip = app.reading.render_line(
                next(i for i, line in enumerate(app.reading.page.lines) if "Rare39" in line.plain)
            )
            underlined = [segment.text for segment in strip if segment.style and segment.style.underline]
            assert "Rare39" in underlined

        drive(act, size=(80, 60))

    def test_finds_tokens_with_their_spaces_shown(self) -> None:
        async def act(app: Browser, pilot: Pilot) -> None:
            found = await find(app, pilot, "␣word17")
            assert found
            assert await find(app, pilot, "x") == []

        drive(act)

    def test_a_number_puts_that_latent_first(self) -> None:
        async def act(app: Browser, pilot: Pilot) -> None:
            found = await find(app, pilot, "17")
            assert found[0] == 17
            assert len(found) > 1  # word17 stands in others' contexts
            await press(pilot, "escape")
            assert (await find(app, pilot, "55"))[0] == 55
            assert app.shown == 55

        drive(act)

    def test_nothing_found_says_so_and_escape_takes_it_back(self) -> None:
        async def act(app: Browser, pilot: Pilot) -> None:
            assert await find(app, pilot, "zebra") == []
            text = "\n".join(screen(app))
            assert "nothing for 'zebra'" in text
            assert app.shown is None
            await press(pilot, "down", "enter", "enter", "tab", "c", "s", "r", "b", "end")
            assert app.listing.chosen is None
            await press(pilot, "escape")
            assert (len(app.listing.latents), app.search) == (LATENTS, "")
            assert app.shown is not None
            assert app.focused is app.listing

        drive(act)

    def test_enter_keeps_it_and_goes_to_the_list(self) -> None:
        async def act(app: Browser, pilot: Pilot) -> None:
            found = await find(app, pilot, "rare39")
            await press(pilot, "down", "enter", "down")
            assert app.listing.latents.tolist() == found
            assert app.shown == found[2]
            await press(pilot, "q")

        assert drive(act).return_value is None

    def test_among_those_that_the_filter_lets_through(self) -> None:
        async def act(app: Browser, pilot: Pilot) -> None:
            await press(pilot, "f", "f", "f")
            assert app.filter == "dead"
            assert await find(app, pilot, "word1") == []
            assert "nothing for 'word1' among the dead" in "\n".join(screen(app))

        drive(act)

    def test_while_text_is_still_read_it_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Words, "read", lambda self: iter(()))

        async def act(app: Browser, pilot: Pilot) -> None:
            await find(app, pilot, "rare")
            assert "still reading" in "\n".join(screen(app))
            assert "reading text, 0%" in screen(app)[-2]

        drive(act)

    def test_text_kept_is_bounded(self, cache: Path) -> None:
        subject = open_subject("run")
        catalogue = Catalogue(subject, open_index(subject), {})
        catalogue.token = lambda token: "y" * 5000  # pyright: ignore[reportAttributeAccessIssue]
        words = Words(catalogue)
        assert list(words.read()) == list(range(1, LATENTS + 1))
        assert words.whole
        assert max(map(len, words._texts)) == LIMIT


@pytest.mark.usefixtures("run")
class TestReading:
    def test_says_what_the_index_says(self) -> None:
        async def act(app: Browser, pilot: Pilot) -> None:
            text = read(app)
            assert "fires on 3.59% (33)" in text  # in sequences 7 … 39, of 920 positions that count
            mean = np.mean([1 + s / 8 + 0.07 for s in range(7, 40)])
            assert f"mean {mean:.2f} · max 5.9" in text
            lines = [line for line in text.splitlines() if line[:6].strip().replace(".", "").isdigit()]
            strengths = [1 + s / 8 + 0.07 for s in range(39, 23, -1)]
            assert [float(line[:6]) for line in lines[:16]] == pytest.approx(strengths, abs=0.01)
            # The peak, at position 10 of sequence 39, stands two fifths into the line.
            assert lines[0].index("word19") == 8 + (80 - 3 - 8) * 2 // 5 + 1  # but for the padding and the scroll bar

        drive(act, app_of(latent=7), size=(80, 60))

    def test_contexts_from_all_of_its_range(self) -> None:
        async def act(app: Browser, pilot: Pilot) -> None:
            assert "Strongest contexts" in read(app)
            await press(pilot, "c")
            text = read(app)
            assert "Strongest contexts" not in text
            heads = [line for line in text.splitlines() if " · from " in line]
            # 30 of its 40 firings, in 5 parts of 6.
            assert [head.split(" · ")[0] for head in heads] == ["strongest", "2 of 5", "3 of 5", "4 of 5", "weakest"]
            y = next(i for i, line in enumerate(text.splitlines()) if line == heads[0])
            assert all(
                segment.style and segment.style.dim for segment in app.reading.render_line(y) if segment.text.strip()
            )
            borders = [float(head.split()[i]) for head in heads for i in (-3, -1)]
            assert borders == sorted(borders, reverse=True)
            await press(pilot, "down", "c")
            assert "Strongest contexts" in read(app)

        drive(act, app_of(latent=0))

    def test_follows_a_link_and_goes_back(self) -> None:
        async def act(app: Browser, pilot: Pilot) -> None:
            # Latent 20 fires at the same position of every sequence from 20 on.
            await press(pilot, "tab")
            assert app.focused is app.reading
            link = app.reading.page.links[0]
            assert link.latent == 20
            line = app.reading.page.lines[link.line].plain
            assert line.split()[:3] == ["20", "+0.70", "50.0%"]  # phi of 20 of 40 positions of 920
            shown = [app.reading.render_line(y).text for y in range(app.reading.size.height)]
            assert any(text.startswith("    20 +0.70") for text in shown)
            await press(pilot, "enter")
            assert app.shown == app.listing.chosen == 20
            assert "b: back to 0" in read(app)
            await press(pilot, "tab", "enter")
            assert app.shown == 0
            assert app.trail == [0, 20]
            await press(pilot, "b", "backspace", "b")
            assert app.shown == app.listing.chosen == 0
            assert "back to" not in read(app)

        drive(act, app_of(latent=0))

    def test_links_are_walked_both_ways_round(self) -> None:
        async def act(app: Browser, pilot: Pilot) -> None:
            count = len(app.reading.page.links)
            await press(pilot, "tab", "tab")
            assert app.reading.link == 1
            await press(pilot, "shift+tab", "shift+tab")
            assert app.reading.link is None
            await press(pilot, "enter")
            assert app.shown == 0
            await press(pilot, "shift+tab")
            assert app.reading.link == count - 1
            await press(pilot, "tab", "tab")
            assert app.reading.link == 0

        drive(act, app_of(latent=0))

    @pytest.mark.parametrize("width", [80, 220])
    def test_a_click_on_a_link_follows_it(self, width: int) -> None:
        async def act(app: Browser, pilot: Pilot) -> None:
            await press(pilot, "enter", "end")
            link = app.reading.page.links[-1]
            y = link.line - round(app.reading.scroll_y)
            x = cell_len(app.reading.page.lines[link.line].plain[: link.start])
            left, top = app.reading.styles.gutter.left, app.reading.styles.gutter.top
            if x:
                await pilot.click("Reading", offset=(left + x - 1, top + y))
                await pilot.pause()
                assert app.shown == 0
            await pilot.click("Reading", offset=(left + x, top + y))
            await pilot.pause()
            assert app.shown == link.latent

        drive(act, app_of(latent=0), size=(width, 24))

    def test_one_that_is_not_in_the_list_is_read_all_the_same(self) -> None:
        async def act(app: Browser, pilot: Pilot) -> None:
            await press(pilot, "f", "f")
            link = next(i for i, link in enumerate(app.reading.page.links) if link.latent >= 31)
            target = app.reading.page.links[link].latent
            await press(pilot, *["tab"] * (link + 1), "enter")
            assert app.shown == target
            assert app.listing.chosen == 0
            assert "not in this list" in read(app)
            await press(pilot, "b")
            assert app.shown == 0
            assert "not in this list" not in read(app)

        drive(act, app_of(latent=0))

    def test_j_walks_on_while_it_is_read(self) -> None:
        async def act(app: Browser, pilot: Pilot) -> None:
            await press(pilot, "s", "enter", "j", "j", "k")
            assert (app.shown, app.focused) == (1, app.reading)
            await press(pilot, "down", "down")
            assert (app.shown, app.reading.scroll_y) == (1, 2)
            await press(pilot, "j")
            assert app.reading.scroll_y == 0
            await press(pilot, "escape")
            assert app.focused is app.listing

        drive(act, app_of(latent=0))

    def test_blocks_stand_side_by_side_where_there_is_room(self) -> None:
        subject = open_subject("run")
        catalogue = Catalogue(subject, open_index(subject), {})
        narrow, wide = (page(catalogue, 0, Ink(True), width, False) for width in (80, 120))
        assert len(wide.lines) < len(narrow.lines)
        assert [link.latent for link in wide.links] == [link.latent for link in narrow.links]
        for made in (narrow, wide):
            for link in made.links:
                assert made.lines[link.line].plain[link.start : link.end].split()[0] == str(link.latent)

    def test_colour_shades_and_its_lack_marks(self) -> None:
        def peaks(ink: Ink) -> tuple[list[str], bool]:
            found = []

            async def act(app: Browser, pilot: Pilot) -> None:
                strip = app.listing.render_line(app.listing.cursor + 1 - round(app.listing.scroll_y))
                found.extend(
                    s.text for s in strip if s.style and s.style.bgcolor and s.style.bgcolor.triplet == (255, 140, 0)
                )
                found.append("«" in strip.text)

            drive(act, app_of(ink, latent=7))
            return found[:-1], found[-1]

        assert peaks(Ink(True)) == ([" word19"], False)
        assert peaks(Ink(True, light=True)) == ([" word19"], False)
        assert peaks(Ink(False)) == ([], True)


@pytest.mark.usefixtures("run")
class TestExplained:
    def test_explanations_are_listed_sorted_filtered_and_found(self, cache: Path) -> None:
        explain(cache)

        async def act(app: Browser, pilot: Pilot) -> None:
            heading = app.listing.render_line(0).text.split()
            assert "score" in heading
            assert "explanation" in heading
            await press(pilot, "f", "f", "f", "f", *["s"] * 5, "home")
            assert (app.filter, app.sorted_by) == ("explained", "score")
            assert app.listing.latents.tolist() == [7, 3, 50]
            assert "0.90" in rows(app)[0]
            assert "the [bold]seventh" in rows(app)[0]
            assert "score .900 (.800–.950)" in read(app)
            assert "the [bold]seventh wonder[/]" in read(app)
            assert await find(app, pilot, "Seventh W") == [7]

        drive(act, size=(140, 24))

    def test_are_found_before_any_text_is_read(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        explain(cache)
        monkeypatch.setattr(Words, "read", lambda self: iter(()))

        async def act(app: Browser, pilot: Pilot) -> None:
            assert await find(app, pilot, "third") == [3]

        drive(act)


class TestAnotherSAE:
    def test_with_an_index_is_shown_at_once(self, run: Path) -> None:
        open_index(open_subject("run", "bp-tied"))

        async def act(app: Browser, pilot: Pilot) -> None:
            await press(pilot, "s", "s", "s", "slash", *"word", "enter")
            await app.workers.wait_for_complete()
            assert 0 in app.listing.latents
            await press(pilot, "e")
            text = "\n".join(screen(app))
            assert "hebb-tied" in text
            assert "diverged" in text
            await press(pilot, "down", "down", "up", "down", "enter")
            assert app.subject.row.setup == "bp"  # hebb-tied cannot be chosen: round again
            await press(pilot, "e", "down", "enter")
            assert app.subject.row.setup == "bp-tied"
            assert "bp-tied, seed 0" in screen(app)[0]
            # Its latent 59 - j is bp's j, and the search is still on.
            await app.workers.wait_for_complete()
            await pilot.pause()
            assert app.search == "word"
            assert app.listing.latents.tolist() == list(range(20, 60))

        drive(act)

    def test_without_one_the_app_closes_until_it_is_made(self, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async def act(app: Browser, pilot: Pilot) -> None:
            await press(pilot, "e", "down", "enter")

        app = drive(act)
        assert app.return_value is not None
        assert app.return_value.setup == "bp-tied"

        opened = []

        def pretend(self: Browser) -> Row | None:
            opened.append((self.subject.row.setup, self.catalogue.latents, self.subject.index_path.exists()))
            return app.return_value if len(opened) == 1 else None

        monkeypatch.setattr(Browser, "run", pretend)
        monkeypatch.setattr("sys.stdin", Terminal())
        browse(BrowseConfig(run="run", latent=3), terminal())
        assert opened == [("bp", LATENTS, True), ("bp-tied", LATENTS, True)]

    def test_escape_keeps_the_one_there_is(self, run: Path) -> None:
        async def act(app: Browser, pilot: Pilot) -> None:
            await press(pilot, "e", "escape", "e", "enter")
            assert app.subject.row.setup == "bp"
            assert app.focused is app.listing

        assert drive(act).return_value is None


class Terminal(io.StringIO):
    """A standard input at a terminal."""

    def isatty(self) -> bool:
        return True


def terminal(**options: object) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, **options)  # pyright: ignore[reportArgumentType]


class TestRefusals:
    def refusal(self, settings: BrowseConfig, console: Console) -> str:
        with pytest.raises(UserError) as caught:
            browse(settings, console)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_no_terminal(self, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sys.stdin", Terminal())
        assert "needs a terminal" in self.refusal(BrowseConfig(), Console(file=io.StringIO()))
        monkeypatch.setattr("sys.stdin", io.StringIO())
        assert "needs a terminal" in self.refusal(BrowseConfig(), terminal())
        monkeypatch.setattr("sys.stdin", Terminal())
        monkeypatch.setenv("TERM", "dumb")
        assert "needs a terminal" in self.refusal(BrowseConfig(), terminal())

    def test_what_is_not_there(self, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sys.stdin", Terminal())
        assert "no run 'rum'" in self.refusal(BrowseConfig(run="rum"), terminal())
        assert "diverged" in self.refusal(BrowseConfig(setup="hebb-tied"), terminal())
        assert "latent 60 is not in 0…59" in self.refusal(BrowseConfig(latent=60), terminal())
        with pytest.raises(ValueError, match="latent must be 0 or above"):
            BrowseConfig(latent=-1)


COLOUR, MARKS = Ink(True), Ink(False)


@pytest.mark.parametrize(
    ("size", "ink"), [((80, 24), COLOUR), ((40, 12), MARKS), ((220, 50), MARKS), ((20, 6), COLOUR)]
)
def test_hostile_text_is_text_at_every_size(cache: Path, size: tuple[int, int], ink: Ink) -> None:
    make(cache, HOSTILE, [f"{HOSTILE[s % 10]}{s}" for s in range(SEQUENCES)])
    explain(cache)
    seen = []

    def check(app: Browser) -> None:
        lines = screen(app)
        assert len(lines) == size[1]
        assert {cell_len(line) for line in lines} == {size[0]}
        # No control or formatting character gets to the terminal.
        assert not [c for line in lines for c in line if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
        seen.extend(lines)

    async def act(app: Browser, pilot: Pilot) -> None:
        check(app)
        for keys in (
            ["down"],
            ["end"],
            ["home"],
            ["c"],
            ["enter"],
            ["tab"],
            ["pagedown"],
            ["end"],
            ["enter"],
            ["escape"],
        ):
            await press(pilot, *keys)
            check(app)
        await find(app, pilot, "[")
        check(app)
        for key in ("escape", "question_mark", "escape", "e", "escape"):
            await press(pilot, key)
            check(app)

    drive(act, app_of(ink), size)
    text = "\n".join(seen)
    if size[0] >= 80:
        for wanted in ("[bold]", "[/]", "a\\u202eb\\u2066c", HEBREW, "\\x1b[31m", "new⏎line", "漢字", "xxxxxx"):
            assert wanted in text, wanted


@pytest.mark.usefixtures("run")
class TestLayout:
    @pytest.mark.parametrize(("size", "both"), [((80, 24), True), ((40, 12), False), ((160, 12), True)])
    def test_a_low_terminal_shows_one_thing_at_a_time(self, size: tuple[int, int], both: bool) -> None:
        async def act(app: Browser, pilot: Pilot) -> None:
            assert app.listing.display
            assert app.reading.display is both
            await press(pilot, "enter")
            assert app.reading.display
            assert app.listing.display is (size[0] >= 132)
            assert "latent 7 of 60" in "\n".join(screen(app))
            await press(pilot, "escape")
            assert app.listing.display
            assert app.focused is app.listing
            await press(pilot, "tab")
            assert (app.focused, app.reading.link) == (app.reading, 0)

        drive(act, app_of(latent=7), size)

    def test_at_eighty_by_twenty_four_there_is_enough_of_both(self) -> None:
        async def act(app: Browser, pilot: Pilot) -> None:
            assert app.listing.size.height >= 8
            assert app.reading.size.height >= 10
            text = "\n".join(screen(app))
            for name in ("search", "sort", "filter", "contexts", "SAE", "back", "help", "quit"):
                assert name in screen(app)[-1]
            assert "Strongest contexts" in text

        drive(act)

    def test_help_names_every_key(self) -> None:
        async def act(app: Browser, pilot: Pilot) -> None:
            await press(pilot, "question_mark")
            text = "\n".join(screen(app))
            for words in ("search numbers", "sort by", "another SAE", "turn the order round", "quit"):
                assert words in text
            await press(pilot, "question_mark")
            assert app.focused is app.listing

        drive(act)

    def test_resizing_keeps_what_is_shown(self) -> None:
        async def act(app: Browser, pilot: Pilot) -> None:
            await press(pilot, "f", "f", "tab", "enter")
            shown = app.shown
            for size in ((40, 12), (200, 50), (80, 24)):
                await pilot.resize_terminal(*size)
                await pilot.pause()
                assert app.shown == shown
                assert {cell_len(line) for line in screen(app)} == {size[0]}

        drive(act, app_of(latent=0))

    def test_warnings_of_the_subject_are_said(self) -> None:
        subject = replace(open_subject("run"), warnings=("store [x] is of another model",))
        app = Browser(subject, open_index(subject), Ink(True))

        async def act(app: Browser, pilot: Pilot) -> None:
            await pilot.pause(0.1)
            assert "store [x] is of" in "\n".join(screen(app))

        drive(act, app)


def test_opens_without_pytorch(run: Path) -> None:
    open_index(open_subject("run"))
    code = (
        "import sys, hsae.browse; assert not {'torch', 'textual', 'rich', 'numpy'} & set(sys.modules), 'not light';"
        "import asyncio; from hsae.browse.app import Browser\n"
        "from hsae.evidence import *; from hsae.inspect.ink import Ink\n"
        "async def go():\n"
        "    subject = open_subject('run'); app = Browser(subject, open_index(subject), Ink(True))\n"
        "    async with app.run_test() as pilot: await pilot.press('enter', 'slash', 'x'); print(app.shown)\n"
        "asyncio.run(go()); assert not {'torch', 'transformers'} & set(sys.modules), 'torch'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
