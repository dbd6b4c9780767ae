"""`hsae serve` in a real browser: from the start page to a latent, one's own text, steering, comparing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from browser import Chromium, launched, needs_browser
from served import CONTEXT, HOSTILE, LATENTS, copied, serving

import hsae
from hsae import origin
from hsae.store import Store

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = needs_browser

HOOK = "blocks.4.hook_resid_pre"
TEXT = "Once upon a time, there was a little dog named Tom."
NOT_FOUND = ("status of 404",)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(tmp_path_factory, tmp_path_factory.mktemp("browser") / "cache")


@pytest.fixture(scope="module")
def url(cache: Path) -> Iterator[str]:
    with serving(cache) as (url, _):
        yield url


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chromium]:
    with launched() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def indexed(url: str, chromium: Chromium) -> str:
    """The address of an SAE whose index was built by its page."""
    with chromium.tab(f"{url}/sae/one:bp:0") as page:
        ready(page)
        if page.get_by_role("button", name="Build the index").count():
            page.get_by_role("button", name="Build the index").click()
            page.wait_for_selector("#list .scroller", timeout=60_000)
    return f"{url}/sae/one:bp:0"


def ready(page: Page) -> None:
    page.wait_for_selector("body[data-ready]")


def read(page: Page, text: str) -> None:
    page.get_by_role("textbox", name="Your own text").fill(text)
    page.get_by_role("button", name="Read").click()
    page.wait_for_selector("body[data-read]", timeout=60_000)


def steer(page: Page) -> str:
    page.get_by_role("button", name="Write").click()
    page.wait_for_selector("body[data-steered]", timeout=60_000)
    return page.locator("body").get_attribute("data-steered") or ""


def code_of(cache: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """[token, latent], by the library."""
    monkeypatch.setenv("HSAE_CACHE", str(cache))
    lm = origin.load(Store.open("stories"), "", "cpu")
    ids = torch.tensor([lm.tokenizer(text)["input_ids"]])
    return hsae.load("one", "bp").encode(lm.tap(ids, (HOOK,))[HOOK])[0]


def test_from_the_start_page_to_a_latent_and_the_search(url: str, chromium: Chromium):
    with chromium.tab(url) as page:
        ready(page)
        names = page.locator("table.runs .name").all_inner_texts()
        assert sorted(names) == sorted(["one", "gone", HOSTILE])
        broken = page.locator("table.broken").inner_text()
        assert "begun" in broken
        assert "unfinished" in broken
        assert "torn" in broken
        assert "damaged" in broken
        page.get_by_role("link", name="one", exact=True).click()
        ready(page)
        rows = page.locator("table.saes tbody tr")
        assert rows.count() == 2
        # No index yet: the page says so, builds it, and then shows the latents.
        rows.nth(1).get_by_role("link").click()
        ready(page)
        assert f"{300 * CONTEXT:,} tokens" in page.locator("#sheet").inner_text()
        page.get_by_role("button", name="Build the index").click()
        page.wait_for_selector("#list .scroller", timeout=60_000)
        assert page.locator("#about").inner_text() == "one topk, seed 0"
        page.get_by_role("button", name=re.compile("^all")).click()
        assert f"{LATENTS} latents" in page.locator("#list .said").inner_text()
        page.locator("#search").fill("5")
        page.keyboard.press("Enter")
        page.wait_for_selector("#detail h1")
        assert page.locator("#detail h1").inner_text() == "Latent 5"
        page.locator("#search").fill("little")
        page.get_by_text(re.compile(rf"^\d+ of {LATENTS}$")).wait_for()
        page.locator("#list tbody tr[data-row]").first.wait_for()
        page.go_back()
        page.get_by_role("link", name="Run", exact=True).click()
        ready(page)
        assert page.locator("table.saes").get_by_role("link", name="latents").count() == 1


def test_what_is_hostile_is_text(url: str, chromium: Chromium, indexed: str):
    with chromium.tab(url) as page:
        ready(page)
        page.get_by_role("link", name=HOSTILE).click()
        ready(page)
        assert page.locator("h1").inner_text() == HOSTILE
        assert page.title() == HOSTILE
    hostile = '</p><script>alert(1)</script><img src=x onerror="alert(2)"> \u202eback\u2066 {{title}}\nend'
    with chromium.tab(f"{indexed}#/text") as page:
        ready(page)
        read(page, hostile)
        shown = page.locator(".tokens").inner_text()
        assert "<script>alert(1)</script>" in shown
        assert "\\u202eback" in shown
        assert page.locator(".tokens script, .tokens img").count() == 0
        assert page.locator(".tokens br").count() == 1


def test_a_text_is_shaded_where_the_library_says(
    cache: Path, chromium: Chromium, indexed: str, monkeypatch: pytest.MonkeyPatch
):
    code = code_of(cache, TEXT, monkeypatch)
    with chromium.tab(f"{indexed}#/text") as page:
        ready(page)
        read(page, TEXT)
        tokens = page.locator(".tokens .t")
        assert "".join(tokens.all_inner_texts()) == TEXT
        assert tokens.count() == len(code)
        fires = (code > 0).any(0).nonzero().flatten().tolist()
        assert page.locator(".read > .note").last.inner_text().startswith(f"{len(fires)} latents fire")
        # A token: the latents that fire on it, the strongest ones.
        position = int((code > 0).sum(1).argmax())
        tokens.nth(position).click()
        listed = [int(number) for number in page.locator(".firing th a").all_inner_texts()]
        strongest = code[position].topk(min(24, int((code[position] > 0).sum()))).indices.tolist()
        assert sorted(listed) == sorted(strongest)
        tokens.nth(position).press("Enter")
        # A latent: the tokens that it fires on, each as strongly as it is there.
        for row in page.locator(".firing tbody tr").all()[:5]:
            latent = int(row.locator("th a").inner_text())
            row.locator(".mark").click()
            on = [i for i in range(len(code)) if "on" in (tokens.nth(i).get_attribute("class") or "").split()]
            assert on == (code[:, latent] > 0).nonzero().flatten().tolist()
            strength = [float(tokens.nth(i).evaluate("e => e.style.getPropertyValue('--s')")) for i in on]
            order = sorted(range(len(on)), key=lambda i: -code[on[i], latent].item())
            assert [strength[i] for i in order] == sorted(strength, reverse=True)
        latent = listed[0]
        page.mouse.move(0, 0)  # A latent under the pointer shades the text.
        page.goto(f"{indexed}#/text/{latent}")
        page.get_by_text(f"latent {latent} fires on").wait_for()
        page.locator(".firing th a").first.click()
        page.wait_for_selector("#detail h1")
        page.get_by_role("link", name="In my text").click()
        page.locator(".tokens").wait_for()


def test_steering_changes_what_is_written_and_no_strength_does_not(chromium: Chromium, indexed: str, url: str):
    with chromium.tab(indexed) as page:
        ready(page)
        page.get_by_role("button", name="fires", exact=True).click()
        page.locator("#list tbody a").first.click()
        page.wait_for_selector("#detail h1")
        page.get_by_role("link", name="Steer by it").click()
        latent = page.get_by_label("Latents to steer by").input_value()
        assert page.url.endswith(f"#/steer/{latent}")
        page.get_by_label("Prompt").fill("Once upon a time")
        page.get_by_label("tokens").fill("12")
        strength = page.get_by_role("spinbutton", name="Strength")
        strength.fill("0")
        assert steer(page) == "same"
        by_itself, pushed = page.locator(".written p").all_inner_texts()
        assert by_itself == pushed
        assert by_itself.startswith("Once upon a time")
        strength.fill("-30")
        assert steer(page) == "other"
        assert page.locator(".written p").first.inner_text() == by_itself
        assert page.locator(".written p").last.inner_text() != by_itself
        assert page.locator(".written .new").count()
        page.get_by_label("What to do").select_option("ablate")
        assert strength.is_hidden()
        steer(page)
        assert f"without {latent}" in page.locator("#view").inner_text()


def test_writing_can_be_cancelled_and_mistakes_are_lines(chromium: Chromium, indexed: str):
    forgiven = ("status of 400", "status of 409", "status of 413")
    with chromium.tab(f"{indexed}#/steer/1", forgive=forgiven) as page:
        ready(page)
        page.get_by_label("Unit of the strength").select_option("activation")
        page.get_by_label("tokens").fill("256")
        page.get_by_role("button", name="Write").click()
        page.locator(".written p").first.wait_for(timeout=60_000)
        page.get_by_role("button", name="cancel").click()
        page.get_by_text("Cancelled").wait_for()
        assert page.get_by_role("button", name="Write").is_enabled()
        for field, value, line in (
            ("Latents to steer by", "", "name 1 to 16 latents"),
            ("Latents to steer by", "99999", "not in 0…95"),
            ("Latents to steer by", "x", "latents must be a list of numbers"),
        ):
            page.get_by_label(field).fill(value)
            page.get_by_role("button", name="Write").click()
            page.get_by_role("alert").get_by_text(line).wait_for()
        page.get_by_label("Latents to steer by").fill("1")
        page.get_by_label("tokens").fill("100000")
        page.get_by_role("button", name="Write").click()
        page.get_by_role("alert").get_by_text("tokens must be 1 to 256").wait_for()


def test_saes_are_compared_and_lead_to_their_latents(chromium: Chromium, indexed: str, url: str):
    with chromium.tab(f"{url}/run/one") as page:
        ready(page)
        assert page.get_by_role("button", name="Compare").is_disabled()
        for box in page.get_by_role("checkbox").all():
            box.check()
        page.get_by_role("button", name="Compare 2").click()
        page.wait_for_selector("body[data-ready=compared]", timeout=60_000)
        assert page.locator("table.sheet tbody tr").count() == 2
        assert "bp ↔ topk" in page.locator("#sheet .compare h3").inner_text()
        # Drawn as it is meant, by the comparison's own style and not the page's.
        drawn = page.locator("#sheet .compare svg").first
        assert 200 < drawn.evaluate("e => e.clientWidth") < 800
        tall = drawn.locator("rect").evaluate_all(
            "all => all.map(e => [e.getBBox().height, +e.getAttribute('height')])"
        )
        assert all(shown == said for shown, said in tall)
        assert any(said > 9 for _, said in tall)
        link = page.locator("#sheet .compare a").first
        latent = link.inner_text()
        link.click()
        page.wait_for_selector("#detail h1")
        assert page.locator("#detail h1").inner_text() == f"Latent {latent}"


def test_two_latents_side_by_side(chromium: Chromium, indexed: str, url: str):
    with chromium.tab(f"{indexed}#/latent/3", forgive=("status of 409",)) as page:
        page.wait_for_selector("#detail h1")
        page.get_by_role("link", name="Beside another").click()
        page.get_by_label("A latent of the other SAE").fill("4")
        page.get_by_role("button", name="Show").click()
        columns = page.locator("article.latent")
        columns.nth(1).locator("h1").wait_for()
        assert [column.locator("h1").inner_text() for column in columns.all()] == ["Latent 3", "Latent 4"]
        for link in columns.nth(1).locator(".latents a").all()[:3]:
            assert (link.get_attribute("href") or "").startswith("/sae/one:bp:0#/latent/")
        page.goto(f"{indexed}#/beside/3/gone%3Abp%3A0/4")
        columns.nth(1).get_by_role("alert").get_by_text("nowhere").wait_for()
        assert columns.nth(0).locator("h1").inner_text() == "Latent 3"


def test_a_gone_store_and_another_models_are_said(chromium: Chromium, url: str):
    with chromium.tab(f"{url}/run/gone") as page:
        ready(page)
        assert "nowhere" in page.get_by_role("alert").inner_text()
        assert page.locator("table.saes").get_by_text("not possible here").count() == 2
        page.get_by_label("Store to take evidence from").select_option(index=1)
        page.wait_for_url("**/run/gone?on=*")
        ready(page)
        assert "another model" in page.get_by_role("alert").inner_text()
        page.locator("table.saes").get_by_role("link").first.click()
        ready(page)
        assert page.url.endswith(f"/sae/gone:bp:0@other@{HOOK}")
        page.get_by_role("button", name="Build the index").click()
        page.wait_for_selector("#list .scroller", timeout=60_000)
        assert "another model" in page.get_by_role("alert").first.inner_text()
    with chromium.tab(f"{url}/run/torn", forgive=("status of 409",)) as page:
        ready(page)
        assert "run.json" in page.get_by_role("alert").inner_text()
    with chromium.tab(f"{url}/run/nope", forgive=NOT_FOUND) as page:
        ready(page)
        assert "no run 'nope'" in page.get_by_role("alert").inner_text()


@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone_nothing_is_cut(chromium: Chromium, indexed: str, url: str, dark: bool):
    for path in (
        "/",
        "/run/one",
        "/compare",
        "/sae/one:bp:0#/text",
        "/sae/one:bp:0#/steer/1",
        "/sae/one:bp:0#/beside/1",
    ):
        with chromium.tab(url + path, width=375, height=740, touch=True, dark=dark) as page:
            ready(page)
            page.wait_for_timeout(100)
            for element in ("html", "#sheet", "#view"):
                for box in page.locator(element).all():
                    wide, room = box.evaluate("e => [e.scrollWidth, e.clientWidth]")
                    assert wide <= room, (path, element, wide)
            ground = page.locator("body").evaluate("e => getComputedStyle(e).backgroundColor")
            assert (ground == "rgb(18, 18, 17)") is dark


def test_by_keyboard_alone(chromium: Chromium, indexed: str):
    with chromium.tab(f"{indexed}#/text") as page:
        ready(page)
        page.keyboard.type("a dog")  # The box has the focus.
        page.keyboard.press("Control+Enter")
        page.wait_for_selector("body[data-read]", timeout=60_000)
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        assert page.locator(":focus").inner_text() == "a"
        page.keyboard.press("Enter")
        assert page.locator(".tokens .t[aria-pressed=true]").inner_text() == "a"
        page.locator(".mark").last.focus()
        page.keyboard.press("Enter")
        assert page.locator(".mark[aria-pressed=true]").count() == 1


def test_a_token_in_the_address_becomes_a_cookie(cache: Path, chromium: Chromium):
    with serving(cache, "--token", "a-token-to-be-shown") as (url, _):
        base = url.partition("/?")[0]
        with chromium.tab(base, forgive=("status of 401",)) as page:
            assert "a token is wanted" in page.locator("body").inner_text()
        with chromium.tab(url) as page:
            ready(page)
            assert page.url == f"{base}/"
            page.get_by_role("link", name="one", exact=True).click()
            ready(page)
            assert page.locator("table.saes tbody tr").count() == 2
            (cookie,) = page.context.cookies()
            assert cookie.get("httpOnly")
            assert "a-token" not in json.dumps(cookie)


def test_a_server_that_has_gone_is_said(cache: Path, chromium: Chromium):
    with serving(cache) as (url, process), chromium.tab(f"{url}/run/one", forgive=("ERR_CONNECTION_REFUSED",)) as page:
        ready(page)
        page.goto(f"{url}/compare?sae=one:bp:0")
        ready(page)
        page.goto(f"{url}/")
        ready(page)
        process.terminate()
        process.wait(5)
        page.get_by_role("alert").get_by_text("does not answer").wait_for()
