"""The page: its documents against the index, its file against hostile text, and what one does with it in a browser."""

from __future__ import annotations

import base64
import http.server
import io
import json
import re
import threading
import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from browser import Chromium, launched, needs_browser
from rich.console import Console
from safetensors.torch import save_file
from tiny_lm import make_text, save_tokenizer
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE, WordLevel

from hsae.errors import UserError
from hsae.evidence import Subject, open_index, open_subject
from hsae.inspect.page import Documents, shell, write_page
from hsae.inspect.page.documents import BLOCK, LONGEST, _sketch
from hsae.inspect.page.words import Words
from hsae.inspect.page.write import SCRIPTS, dumped
from hsae.inspect.tokens import Pieces
from hsae.interpret.results import Explanation, Score
from hsae.record import Result, Row
from hsae.run import RunWriter
from hsae.sae import SAE
from hsae.sae.relu import ReLU
from hsae.store import StoreWriter

if TYPE_CHECKING:
    from playwright.sync_api import Page

HOOK = "blocks.0.hook_resid_pre"
SEQUENCES, CONTEXT, LATENTS = 40, 48, 70
HOSTILE = [
    "</script><script>window.pwned = 1</script>",
    "<!--<script>",
    "<img src=x onerror='window.pwned=2'>",
    "\u2028\u2029",
    "left\u202eright\u2066",
    "zero\u200bwidth\ufeff",
    "bell\x07nul\x00esc\x1b[31m",
    "x" * 100_000,
    "שלום עולם",
    "{{scripts}}",
    "漢字😀",
    " sun",
]


def plant() -> torch.Tensor:
    """Activations [sequence, position, latent]; the SAE is the identity.

    Latent 0 fires once in each sequence, 1 at one place in all the store, 2 everywhere, 3 nowhere, 69 (in the last
    block) twice in every other sequence; the others on some token.
    """
    x = torch.zeros(SEQUENCES, CONTEXT, LATENTS)
    for s in range(SEQUENCES):
        x[s, (7 * s + 5) % CONTEXT, 0] = 1 + s / 8
        x[s, :, 2] = 0.25 + torch.arange(CONTEXT) / 100
        for latent in range(4, 69):
            x[s, (3 * s + 5 * latent) % CONTEXT, latent] = 0.5 + ((s + latent) % 9) / 10
        if s % 2:
            x[s, 20, 69], x[s, 22, 69] = 2 + s / 100, 1.0
    x[17, 11, 1] = 3.25
    return x


def make(
    cache: Path,
    name: str,
    tokens: torch.Tensor,
    tokenizer: Any,
    x: torch.Tensor | None = None,
    model: str = "",
    trained_on: str = "m",
    run: str = "",
) -> Subject:
    """A store of given tokens, and a run with one setup on it."""
    x = plant() if x is None else x
    writer = StoreWriter(cache / "activations" / name, {"test": "page"}, "fp32")
    keep = torch.ones(tokens.shape, dtype=torch.bool)
    writer.write(0, tokens, {HOOK: x}, {HOOK: keep}, {HOOK: {}})
    tables = {"model": {"fingerprint": "m", "name": model}, "tokenizer": {}, "text": {}, "harvest": {}}
    manifest = writer.finish(shard_sequences=len(tokens), context=tokens.shape[1], **tables)
    if tokenizer is not None:
        (writer.folder / "tokenizer").mkdir()
        tokenizer.save(str(writer.folder / "tokenizer" / "tokenizer.json"))
    width = x.shape[2]
    result = Result(
        version=1,
        store=name,
        store_fingerprint=manifest.fingerprint,
        model={"fingerprint": trained_on, "name": "/home/someone/models/tiny"},
        hook=HOOK,
        width=width,
        latents=width,
        scale=1.0,
        folded=False,
        steps=5,
        tokens=100,
        held_out=16_384,
        dead_window=500_000,
        rows=(Row("bp", 0, 6.0e-5, 0.893, 0.1, 0.9, 0.895, 5.3e-3, 41.7, 60, 4),),
    )
    record = RunWriter(cache / "runs" / (run or name), {"setup": {"bp": {"decoder": "backprop"}}})
    sae = SAE(torch.eye(width), torch.zeros(width), torch.eye(width), torch.zeros(width), ReLU())
    record.finish({("bp", 0): sae}, result)
    return open_subject(run or name)


class Made:
    """A subject, its index, its documents and its page."""

    def __init__(self, subject: Subject, folder: Path, latents: list[int] | None = None) -> None:
        self.subject, self.index = subject, open_index(subject)
        self.documents = Documents(subject, self.index, latents)
        self.page = folder / "page.html"
        write_page(subject, self.index, latents, self.page)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of these tests' own."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HSAE_CACHE", str(home))
        yield home


@pytest.fixture(scope="module")
def stories(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Byte-level tokens, so that some are parts of characters; a model whose unembedding can be read; explanations."""
    folder = tmp_path_factory.mktemp("stories")
    save_tokenizer(folder / "lm")
    tokenizer = Tokenizer.from_file(str(folder / "lm" / "tokenizer.json"))
    texts = [f"{'漢字 😀 the ' if s % 3 == 0 else ''}{text}" for s, text in enumerate(make_text(SEQUENCES, 60))]
    tokens = torch.tensor([tokenizer.encode(text).ids[:CONTEXT] for text in texts])
    (folder / "lm" / "config.json").write_text(json.dumps({"model_type": "llama", "tie_word_embeddings": False}))
    weights = {"lm_head.weight": torch.randn(300, LATENTS, generator=torch.Generator().manual_seed(1))}
    save_file(weights | {"model.norm.weight": torch.ones(LATENTS)}, folder / "lm" / "model.safetensors")
    return Made(make(home, "stories", tokens, tokenizer, model=str(folder / "lm")), folder)


@pytest.fixture(scope="module")
def hostile(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Tokens that would be markup, run on, turn round or be unseen; a run with such a name, of another model."""
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(HOSTILE)}, unk_token=" sun"))
    tokenizer.decoder = decoders.Fuse()  # pyright: ignore[reportAttributeAccessIssue]
    tokens = (torch.arange(SEQUENCES)[:, None] * 5 + torch.arange(CONTEXT)) % len(HOSTILE)
    tokens[1:][tokens[1:] == HOSTILE.index("x" * 100_000)] = 0
    run = "<img src=x onerror=window.pwned=3>"
    subject = make(home, "hostile", tokens, tokenizer, trained_on="another", run=run)
    return Made(subject, tmp_path_factory.mktemp("hostile"))


def unpacked(page: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The summary and the blocks in a file, read as HTML says that scripts end."""
    text = page.read_text(encoding="utf-8")
    source = re.search(r'<script type="application/json" id="source">(.*?)</script', text, re.S)
    blocks = re.findall(r'<script type="text/plain" id="block-(\d+)">([^<]*)</script>', text)
    assert source
    assert [int(number) for number, _ in blocks] == list(range(len(blocks)))
    summary = json.loads(source[1])["summary"]
    return summary, [json.loads(zlib.decompress(base64.b64decode(packed))) for _, packed in blocks]


def text_of(context: dict[str, Any], vocabulary: dict[str, Any]) -> tuple[str, ...]:
    return tuple(vocabulary["text"][number] for number in context["tokens"])


class TestWords:
    @staticmethod
    def byte_level(folder: Path) -> Tokenizer:
        save_tokenizer(folder)
        return Tokenizer.from_file(str(folder / "tokenizer.json"))

    @staticmethod
    def byte_fallback(folder: Path) -> Tokenizer:
        """As Llama's: bytes by themselves, and a decoder that drops the first space."""
        names = [*(f"<0x{byte:02X}>" for byte in range(256)), "▁the", "▁sun", "s", "▁"]
        tokenizer = Tokenizer(BPE({name: i for i, name in enumerate(names)}, [], byte_fallback=True))
        tokenizer.decoder = decoders.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        return tokenizer

    @staticmethod
    def word_pieces(folder: Path) -> Tokenizer:
        """A decoder that puts spaces between tokens, and none before punctuation."""
        tokenizer = Tokenizer(WordLevel({n: i for i, n in enumerate(["a", "sun", "##ny", ".", "'s", "n't"])}, "a"))
        tokenizer.decoder = decoders.WordPiece(cleanup=True)  # pyright: ignore[reportAttributeAccessIssue]
        return tokenizer

    @staticmethod
    def contrary(folder: Path) -> Tokenizer:
        """A decoder under which whole tokens depend on their neighbours."""
        tokenizer = Tokenizer(WordLevel({n: i for i, n in enumerate(["a", "b", "c", "ab"])}, unk_token="a"))
        tokenizer.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("bc", "!")])  # pyright: ignore[reportAttributeAccessIssue]
        return tokenizer

    @pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "word_pieces", "contrary"])
    def test_windows_at_once_are_as_one_by_one(self, tmp_path: Path, kind: str) -> None:
        tokenizer = getattr(self, kind)(tmp_path)
        generator = torch.Generator().manual_seed(3)
        windows = torch.randint(tokenizer.get_vocab_size() + 2, (300, 9), generator=generator).tolist()
        windows += [list("漢字😀é the sun".encode()), [], [0]] if kind == "byte_fallback" else [[]]
        words, pieces = Words(tokenizer), Pieces(tokenizer)
        found = words.many(windows)
        assert [one or tuple(words.alone[token] for token in w) for one, w in zip(found, windows, strict=True)] == [
            pieces(window) for window in windows
        ]

    def test_tokens_of_no_tokeniser_are_their_ids(self) -> None:
        words = Words(None)
        assert words.many([[3, 4]]) == [None]
        assert words.alone[3] == "⟨3⟩"


class TestDocuments:
    def test_a_block_says_what_the_index_says(self, stories: Made) -> None:
        alone = Pieces(stories.subject.tokenizer)
        pieces = cache(alone)
        latents = []
        partial = 0
        for number in range(stories.documents.blocks):
            block = stories.documents.block(number)
            vocabulary = block["vocabulary"]
            for shown in block["latents"]:
                one = stories.index.latent(shown["latent"])
                latents.append(one.latent)
                shown_contexts = [*shown["top"], *(context for part in shown["quantiles"] for context in part)]
                contexts = [*one.top, *(context for part in one.quantiles() for context in part)]
                assert len(shown_contexts) == len(contexts)
                assert [len(part) for part in shown["quantiles"]] == [len(part) for part in one.quantiles()]
                if one.latent % 8 > 1:
                    continue  # A tenth of a second for each of them.
                for there, here in zip(shown_contexts, contexts, strict=True):
                    assert tuple(vocabulary["ids"][n] for n in there["tokens"]) == here.tokens
                    assert text_of(there, vocabulary) == pieces(here.tokens)
                    assert (there["sequence"], there["position"], there["peak"]) == (
                        here.sequence,
                        here.position,
                        here.peak,
                    )
                    fires = dict(there["fires"])
                    assert [fires.get(i, 0) for i in range(len(here.tokens))] == pytest.approx(
                        here.activations, rel=0.0051
                    )
                    partial += text_of(there, vocabulary).count("")
                assert (shown["firings"], shown["bin"]) == (one.firings, one.histogram.width)
                assert tuple(shown["histogram"]) == one.histogram.counts
                assert [(vocabulary["ids"][n], f, o) for n, f, _, o in shown["tokens"]] == [
                    (use.token, use.firings, use.occurrences) for use in one.tokens
                ]
                assert [vocabulary["text"][n] for n, *_ in shown["tokens"]] == [alone.one(t.token) for t in one.tokens]
                assert [m for _, _, m, _ in shown["tokens"]] == pytest.approx([t.mass for t in one.tokens], rel=0.006)
                assert [latent for latent, *_ in shown["coactive"]] == [c.latent for c in one.coactive]
                assert [latent for latent, _ in shown["near"]] == [near.latent for near in one.near]
                for key in ("promoted", "suppressed"):
                    assert [vocabulary["ids"][n] for n, _ in shown[key]] == [logit.token for logit in getattr(one, key)]
        assert latents == list(range(LATENTS))
        assert partial > 100  # characters of several tokens are in there

    def test_the_summary_says_what_the_index_says(self, stories: Made) -> None:
        summary, index = stories.documents.summary(), stories.index
        columns = summary["columns"]
        assert {len(column) for column in columns.values()} == {LATENTS}
        assert columns["firings"] == index.firings.tolist()
        assert columns["maximum"] == pytest.approx(index.maximum.tolist(), rel=1e-3)
        assert columns["mean"] == pytest.approx(index.mean.tolist(), rel=1e-3)
        assert columns["same"] == [round(16 * value) for value in index.selectivity]
        pieces = Pieces(stories.subject.tokenizer)
        for latent in (0, 2, 69):
            one = index.latent(latent)
            assert columns["tokens"][latent] == [pieces.one(use.token) for use in one.tokens[:6]]
            before, peak, after = columns["context"][latent]
            text = pieces(one.top[0].tokens)
            at = one.top[0].peak
            shown = next(i for i in range(at, len(text)) if text[i])
            assert peak == text[shown]
            assert "".join(text[:shown]).endswith(before)
            assert "".join(text[shown + 1 :]).startswith(after)
            heights = [int(digit, 36) for digit in columns["histogram"][latent]]
            counts = one.histogram.counts
            assert len(heights) == len(counts)
            assert max(heights) == 35
            assert [height > 0 for height in heights] == [count > 0 for count in counts]
        assert columns["context"][3] is None
        assert columns["histogram"][3] == ""
        assert (summary["model"], summary["run"], summary["setup"]) == ("tiny", "stories", "bp")
        assert summary["metrics"]["dead"] == 4
        assert summary["no_logits"] is None

    def test_a_sketch_shows_every_bin_that_holds_something(self) -> None:
        assert _sketch([5000, 1, 0, 1250]) == "z10i"  # sqrt(1 / 5000) is .014, sqrt(1 / 4) of 35 is 17.5
        assert _sketch([]) == ""

    def test_some_latents_in_their_order(self, stories: Made) -> None:
        documents = Documents(stories.subject, stories.index, [69, 1])
        assert documents.summary()["columns"]["latent"] == [69, 1]
        assert documents.summary()["columns"]["firings"] == [40, 1]
        (block,) = (documents.block(number) for number in range(documents.blocks))
        assert [one["latent"] for one in block["latents"]] == [69, 1]

    def test_explanations_are_shown_where_they_are(self, stories: Made, monkeypatch: pytest.MonkeyPatch) -> None:
        score = Score(0.87512, 0.8, 0.9, 9, 10, 9, 10)
        found = {4: Explanation(4, "the sun <b>", detection=score), 5: Explanation(5, "", why="never fires")}
        monkeypatch.setattr("hsae.interpret.results.read_explanations", lambda subject: found)
        columns = stories.documents.summary()["columns"]
        assert columns["explanation"][3:6] == [None, "the sun <b>", None]
        assert columns["score"][3:6] == [None, 0.875, None]

    def test_numbers_that_json_does_not_have(self, stories: Made) -> None:
        row = replace(stories.subject.row, mse=float("nan"), evr=float("-inf"), l0=None)
        summary = Documents(replace(stories.subject, row=row), stories.index).summary()
        assert [summary["metrics"][name] for name in ("mse", "evr", "l0")] == [None, None, None]
        json.loads(dumped(summary), parse_constant=pytest.fail)
        with pytest.raises(ValueError, match="JSON"):
            dumped({"a": float("nan")})


class TestFile:
    def test_it_holds_the_documents(self, stories: Made) -> None:
        summary, blocks = unpacked(stories.page)
        assert summary == stories.documents.summary()
        assert json.loads(json.dumps([stories.documents.block(n) for n in range(3)])) == blocks
        assert [len(block["latents"]) for block in blocks] == [BLOCK, BLOCK, LATENTS - 2 * BLOCK]

    def test_hostile_text_is_data(self, hostile: Made) -> None:
        summary, blocks = unpacked(hostile.page)
        text = hostile.page.read_text(encoding="utf-8")
        assert text.count("<script") == text.count("</script") == 1 + len(SCRIPTS) + len(blocks)
        assert "window.pwned" not in re.sub(r'id="source">.*?</script', "", text, flags=re.S).replace(
            "<title>&lt;img src=x onerror=window.pwned=3&gt;", ""
        )
        assert not re.search("[\u2028\u202e\u200b\x00\x07\x1b]", text)
        assert summary["run"] == "<img src=x onerror=window.pwned=3>"
        assert any("another model" in warning for warning in summary["warnings"])
        shown = {t for block in blocks for t in block["vocabulary"]["text"]}
        assert shown == {token[:LONGEST] for token in HOSTILE}
        assert {n for block in blocks for n in block["vocabulary"]["cut"].values()} == {100_000}
        assert len(text) < 400_000

    def test_it_says_where_it_is(self, stories: Made, tmp_path: Path) -> None:
        said = io.StringIO()
        path = tmp_path / "a page.html"
        write_page(stories.subject, stories.index, [2], path, Console(file=said, width=200))
        assert said.getvalue() == f"{path}: 1 latent, {path.stat().st_size / 1024:.1f} KiB\n"
        assert [f.name for f in tmp_path.iterdir()] == ["a page.html"]

    @pytest.mark.parametrize(
        ("latents", "name", "said"),
        [([3, 70], "p.html", "70 is not in 0…69"), (None, "no/p.html", "cannot be written")],
    )
    def test_refusals(self, stories: Made, tmp_path: Path, latents: list[int] | None, name: str, said: str) -> None:
        with pytest.raises(UserError, match=said) as caught:
            write_page(stories.subject, stories.index, latents, tmp_path / name)
        assert "\n" not in str(caught.value)
        assert not list(tmp_path.iterdir())

    def test_a_server_may_be_asked_only_by_its_own_page(self, stories: Made) -> None:
        assert "connect-src 'none'" in stories.page.read_text(encoding="utf-8")
        assert "connect-src 'self'" in shell("t", {"base": "/x"})


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chromium]:
    with launched() as chromium:
        yield chromium


def ready(page: Page) -> Page:
    page.wait_for_selector("body[data-ready]")
    return page


def rows(page: Page) -> list[int]:
    """The latents in the table's rows that are in the document."""
    return [int(text) for text in page.locator("tbody tr[data-row] a").all_inner_texts()]


def at(made: Made, latent: int) -> str:
    return f"{made.page.as_uri()}#/latent/{latent}"


def contexts_with(made: Made, text: str) -> list[int]:
    """The latents of which a context holds a text, whatever its case."""
    found = []
    for latent in range(made.index.latents):
        one = made.index.latent(latent)
        texts = made.subject.tokenizer.decode_batch([list(c.tokens) for c in (*one.top, *one.samples)])
        if any(text in decoded.lower() for decoded in texts):
            found.append(latent)
    return found


@needs_browser
class TestTable:
    def test_it_is_sorted_by_its_headings(self, chromium: Chromium, stories: Made) -> None:
        with chromium.tab(stories.page) as page:
            ready(page)
            assert rows(page)[:5] == [0, 1, 2, 4, 5]  # 3 is dead
            firings = stories.index.firings
            heading = page.get_by_role("columnheader", name="fires")
            heading.get_by_role("button").click()
            assert heading.get_attribute("aria-sort") == "descending"
            live = [i for i in range(LATENTS) if firings[i]]
            assert rows(page)[:9] == sorted(live, key=lambda i: (-firings[i], i))[:9]
            heading.get_by_role("button").click()
            assert heading.get_attribute("aria-sort") == "ascending"
            assert rows(page)[:9] == sorted(live, key=lambda i: (firings[i], i))[:9]
            page.get_by_role("columnheader", name="max").get_by_role("button").click()
            assert heading.get_attribute("aria-sort") is None
            assert rows(page)[0] == int(stories.index.maximum.argmax())

    def test_filters_show_some(self, chromium: Chromium, stories: Made) -> None:
        with chromium.tab(stories.page) as page:
            ready(page)
            assert page.get_by_role("button", name="live 69").get_attribute("aria-pressed") == "true"
            page.get_by_role("button", name="dead 1").click()
            assert rows(page) == [3]
            assert "dead" in page.locator("tbody").inner_text()
            assert page.locator(".said").inner_text() == "1 of 70"
            page.get_by_role("button", name="all 70").click()
            assert page.get_by_role("table", name="Latents").get_attribute("aria-rowcount") == "71"

    def test_search_finds_tokens_text_and_numbers(self, chromium: Chromium, stories: Made) -> None:
        with chromium.tab(stories.page) as page:
            ready(page)
            page.get_by_role("button", name="all 70").click()
            for text in ("漢字", " and THE", "a small text that is nowhere"):
                page.locator("#search").fill(text)
                page.wait_for_selector("#list[aria-busy=false]")
                wanted = contexts_with(stories, text.lower())
                assert page.locator(".said").inner_text() == f"{len(wanted)} of 70"
                assert rows(page) == wanted[: len(rows(page))]
            assert page.get_by_text("No latent matches.").is_visible()
            page.locator("#search").fill("69")
            assert rows(page)[0] == 69
            page.keyboard.press("Enter")
            page.get_by_role("heading", name="Latent 69", exact=True).wait_for()
            page.locator("#search").fill("")
            assert page.locator(".said").inner_text() == "70 latents"

    def test_what_was_searched_for_is_marked(self, chromium: Chromium, stories: Made) -> None:
        with chromium.tab(stories.page) as page:
            ready(page)
            page.locator("#search").fill("漢字")
            page.wait_for_selector("#list[aria-busy=false]")
            found = page.locator("td.c-context").first
            assert found.locator(".found").inner_text() == "漢字"
            assert found.locator(".after").inner_text().startswith(" 😀 the ")
            page.keyboard.press("Enter")
            page.wait_for_selector("#detail .context")
            marked = page.locator(".context .found").all_text_contents()
            assert "".join(marked)
            assert set("".join(marked)) == set("漢字")

    def test_a_number_comes_before_texts_that_hold_it(self, chromium: Chromium, hostile: Made) -> None:
        with chromium.tab(hostile.page) as page:
            ready(page)
            page.locator("#search").fill("31")  # in an escape sequence, which all latents have in a context
            page.wait_for_selector("#list[aria-busy=false]")
            assert rows(page)[:4] == [31, 0, 1, 2]

    def test_explanations_can_be_read_searched_and_sorted_by(
        self, chromium: Chromium, stories: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def explained(subject: Subject) -> dict[int, Explanation]:
            words = {7: ("the sun <i>", 0.61), 9: ("dogs (and cats)", 0.92), 12: ("a dog", 0.75)}
            return {i: Explanation(i, text, detection=Score(n, 0.0, 1.0, 1, 1, 1, 1)) for i, (text, n) in words.items()}

        monkeypatch.setattr("hsae.interpret.results.read_explanations", explained)
        path = tmp_path / "explained.html"
        write_page(stories.subject, stories.index, None, path)
        with chromium.tab(path) as page:
            ready(page)
            page.get_by_role("columnheader", name="score").get_by_role("button").click()
            assert rows(page)[:3] == [9, 12, 7]
            assert page.locator("td.c-score").all_inner_texts()[:4] == [".920", ".750", ".610", "–"]
            page.locator("#search").fill("(and CATS")
            page.wait_for_selector("#list[aria-busy=false]")
            assert rows(page) == [9]
            page.keyboard.press("Enter")
            assert page.locator(".explanation").inner_text() == "dogs (and cats) .920"
            page.locator("#search").fill("")
            page.goto(f"{path.as_uri()}#/latent/7")
            page.get_by_text("the sun <i> .610").wait_for()
            # Beside a latent there is room for one column: what has no explanation shows its tokens there.
            page.locator("tr[data-row='8'] .instead .chip").first.wait_for()

    def test_only_the_rows_in_sight_are_in_the_document(
        self, chromium: Chromium, stories: Made, tmp_path: Path
    ) -> None:
        summary = stories.documents.summary()
        columns = summary["columns"]
        times = 16_000 // LATENTS
        summary["columns"] = {name: column * times for name, column in columns.items()}
        summary["columns"]["latent"] = list(range(times * LATENTS))
        big = tmp_path / "big.html"
        big.write_text(shell("big", {"summary": summary}), encoding="utf-8")
        with chromium.tab(big) as page:
            ready(page)
            page.get_by_role("button", name="all").click()
            assert page.locator("tbody tr").count() < 60
            page.locator(".scroller").evaluate("element => element.scrollTop = element.scrollHeight")
            page.get_by_role("link", name=str(times * LATENTS - 1), exact=True).wait_for()
            assert page.locator("tbody tr").count() < 60
            last = page.locator("tbody tr[data-row]").last
            assert last.get_attribute("aria-rowindex") == str(times * LATENTS + 1)
            box, pane = last.bounding_box(), page.locator(".scroller").bounding_box()
            assert box
            assert pane
            assert box["y"] + box["height"] == pytest.approx(pane["y"] + pane["height"], abs=2)


@needs_browser
class TestLatent:
    def test_its_contexts_are_the_true_text_shaded_by_activation(self, chromium: Chromium, stories: Made) -> None:
        pieces = Pieces(stories.subject.tokenizer)
        with chromium.tab(at(stories, 69)) as page:
            ready(page)
            one = stories.index.latent(69)
            lines = page.locator(".context")
            contexts = [*one.top, *(context for part in one.quantiles() for context in part)]
            assert lines.count() == len(contexts)
            for i in (0, 15, len(contexts) - 1):
                tokens = lines.nth(i).locator(".t")
                assert "".join(tokens.all_text_contents()) == "".join(pieces(contexts[i].tokens)).replace("\n", "⏎")
                shaded = [
                    float(token.evaluate("element => element.style.getPropertyValue('--s') || 0"))
                    for token in tokens.all()
                ]
                wanted = [value / one.maximum for value in contexts[i].activations]
                assert shaded == pytest.approx(wanted, abs=0.006)
                assert lines.nth(i).locator(".peak").get_attribute("data-i") == str(contexts[i].peak)
            # Not by colour alone: an underline too.
            border = lines.first.locator(".t.on").first.evaluate("e => getComputedStyle(e).borderBottomStyle")
            assert border == "solid"

    def test_what_else_is_known(self, chromium: Chromium, stories: Made) -> None:
        one = stories.index.latent(69)
        with chromium.tab(at(stories, 69), height=1400) as page:
            ready(page)
            assert page.locator(".facts").inner_text().startswith("2.08% of tokens 40")
            columns = page.locator(".histogram .column")
            assert columns.count() == len(one.histogram.counts)
            high = [float(column.get_attribute("height") or 0) for column in columns.all()]
            most = max(one.histogram.counts)
            assert [height / max(high) for height in high] == pytest.approx(
                [count / most for count in one.histogram.counts], abs=0.02
            )
            page.get_by_role("button", name="log").click()
            assert page.get_by_role("button", name="log").get_attribute("aria-pressed") == "true"
            lens = page.locator(".panel", has_text="Logit lens")
            assert lens.locator("tr").count() == len(one.promoted) + len(one.suppressed)
            assert lens.locator(".number").first.inner_text() == f"{one.promoted[0].logit:.2f}"
            near = page.locator(".panel", has_text="Nearest directions").locator("a")
            assert [int(text) for text in near.all_inner_texts()] == [n.latent for n in one.near]
            near.first.click()
            page.get_by_role("heading", name=f"Latent {one.near[0].latent}", exact=True).wait_for()

    def test_the_tooltip_by_mouse_and_keys(self, chromium: Chromium, stories: Made) -> None:
        one = stories.index.latent(69)
        with chromium.tab(at(stories, 69)) as page:
            ready(page)
            line = page.locator(".context").first
            line.locator(".peak").hover()
            tip = page.locator("#tip")
            context = one.top[0]
            assert f"{context.activation:.2f} 100% of the maximum" in tip.inner_text()
            assert f"token {context.tokens[context.peak]} " in tip.inner_text()
            assert f"position {context.position} of sequence {context.sequence}" in tip.inner_text()
            line.locator(".t").nth(context.peak + 1).hover()
            assert "silent" in tip.inner_text()
            page.mouse.move(5, 5)
            assert tip.is_hidden()
            page.locator(".wrap").focus()
            page.keyboard.press("Tab")
            assert "100% of the maximum" in tip.inner_text()
            for _ in range(2):
                page.keyboard.press("ArrowRight")
            assert f"token {context.tokens[context.peak + 2]} " in tip.inner_text()
            page.keyboard.press("ArrowLeft")
            assert "silent" in tip.inner_text()
            page.keyboard.press("Escape")
            assert tip.is_hidden()

    def test_a_part_of_a_character_that_fires_can_be_seen(self, chromium: Chromium, stories: Made) -> None:
        latent = stories.index.latent(2)  # it fires on every token
        contexts = [*latent.top, *(context for part in latent.quantiles() for context in part)]
        pieces = Pieces(stories.subject.tokenizer)
        number = next(i for i, context in enumerate(contexts) if "" in pieces(context.tokens))
        with chromium.tab(at(stories, 2)) as page:
            ready(page)
            page.keyboard.press("w")  # all of the text is in sight
            line = page.locator(".context").nth(number)
            token = line.locator(".t", has_text="·").first
            token.hover()
            assert "part of a character" in page.locator("#tip").inner_text()

    def test_one_context_and_none(self, chromium: Chromium, stories: Made) -> None:
        with chromium.tab(at(stories, 1)) as page:
            ready(page)
            assert page.locator(".context").count() == 2  # the strongest, and the one sample
            assert "Part 1 of 1" in page.locator(".contexts").inner_text()
            page.goto(at(stories, 3))
            page.get_by_text("It never fires on this store").wait_for()
            assert page.locator(".panel", has_text="Nearest directions").locator("a").count() == 12
            page.goto(at(stories, 4711))
            page.get_by_text("There is no latent 4711 in this page.").wait_for()
            page.goto(f"{stories.page.as_uri()}#/%E0%A4%A/latent")
            page.locator("#detail").wait_for(state="hidden")


@needs_browser
class TestWays:
    def test_keys(self, chromium: Chromium, stories: Made) -> None:
        with chromium.tab(stories.page) as page:
            ready(page)
            title = page.locator("#detail h1")
            for key in ("j", "ArrowDown", "ArrowDown", "k"):
                page.keyboard.press(key)
            assert page.locator("tr[aria-current=true] a").inner_text() == "1"
            page.keyboard.press("Enter")
            assert title.inner_text() == "Latent 1"
            page.keyboard.press("j")
            page.keyboard.press("j")
            page.get_by_role("heading", name="Latent 4").wait_for()
            assert page.locator("tr[aria-current=true] a").inner_text() == "4"
            assert page.evaluate("location.hash") == "#/latent/4"
            page.keyboard.press("w")
            assert page.locator(".wrap").get_attribute("aria-pressed") == "true"
            page.keyboard.press("Escape")
            title.wait_for(state="detached")
            page.keyboard.press("/")
            page.keyboard.type("5j")  # letters in the search are letters
            assert page.locator("#search").input_value() == "5j"
            page.keyboard.press("Escape")
            assert page.locator("#search").input_value() == ""
            page.keyboard.press("Escape")
            page.keyboard.press("?")
            assert page.get_by_role("dialog").is_visible()
            page.keyboard.press("Escape")
            assert page.get_by_role("dialog").is_hidden()

    def test_addresses_and_the_back_button(self, chromium: Chromium, stories: Made) -> None:
        with chromium.tab(at(stories, 69)) as page:
            ready(page)
            assert page.title() == "69 · stories · bp"
            page.locator("tr[data-row='60']").click()
            page.get_by_role("heading", name="Latent 60").wait_for()
            page.go_back()
            page.get_by_role("heading", name="Latent 69").wait_for()
            page.reload()
            page.get_by_role("heading", name="Latent 69").wait_for()
            page.locator(".close").click()
            page.locator("#detail").wait_for(state="hidden")
            assert page.title() == "stories · bp"

    def test_a_page_of_one_latent_shows_it(self, chromium: Chromium, stories: Made, tmp_path: Path) -> None:
        path = tmp_path / "one.html"
        write_page(stories.subject, stories.index, [69], path)
        with chromium.tab(path) as page:
            ready(page)
            page.get_by_role("heading", name="Latent 69", exact=True).wait_for()
            near = page.locator(".panel", has_text="Nearest directions")
            assert near.get_by_text("not in this page").count() == 12
            assert near.locator("a").count() == 0

    @pytest.mark.parametrize("dark", [False, True])
    def test_light_and_dark(self, chromium: Chromium, stories: Made, dark: bool) -> None:
        def lightness(page: Page) -> float:
            paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
            return sum(map(int, re.findall(r"\d+", paper)[:3])) / 3

        with chromium.tab(at(stories, 69), dark=dark) as page:
            ready(page)
            assert (lightness(page) < 128) == dark
            page.get_by_role("button", name="Light or dark").click()
            assert (lightness(page) < 128) != dark
            page.reload()
            ready(page)
            assert (lightness(page) < 128) != dark

    @pytest.mark.parametrize("width", [390, 320])
    def test_on_a_phone(self, chromium: Chromium, stories: Made, hostile: Made, width: int) -> None:
        for made in (stories, hostile):
            with chromium.tab(made.page, width, 844, touch=True) as page:
                ready(page)
                assert page.evaluate("document.documentElement.scrollWidth") == width
                page.locator("tbody tr[data-row]").first.tap()
                page.wait_for_selector("#detail .context")
                for pane in ("document.documentElement", "document.querySelector('#detail')"):
                    assert page.evaluate(f"{pane}.scrollWidth <= {pane}.clientWidth")
                page.locator(".context .peak").first.tap()
                assert "of the maximum" in page.locator("#tip").inner_text()
                box = page.locator("#tip").bounding_box()
                assert box
                assert 0 <= box["x"] <= box["x"] + box["width"] <= width

    def test_on_paper(self, chromium: Chromium, stories: Made) -> None:
        with chromium.tab(stories.page, height=300) as page:
            ready(page)
            assert len(rows(page)) < 60
            page.emulate_media(media="print")
            page.evaluate("dispatchEvent(new Event('beforeprint'))")
            assert len(rows(page)) == 69
            page.emulate_media(media="screen")
            page.evaluate("dispatchEvent(new Event('afterprint'))")
            assert len(rows(page)) < 60


@needs_browser
class TestSafety:
    def test_hostile_text_is_shown_and_does_nothing(self, chromium: Chromium, hostile: Made) -> None:
        with chromium.tab(hostile.page) as page:
            ready(page)
            assert page.locator("#about").inner_text().startswith("<img src=x onerror=window.pwned=3>")
            assert "another model" in page.get_by_role("alert").inner_text()
            shown = page.locator("#main").inner_text()
            for latent in range(0, LATENTS, 3):
                page.goto(at(hostile, latent))
                page.get_by_role("heading", name=f"Latent {latent}", exact=True).wait_for()
                shown += page.locator("#detail").inner_text()
            assert "None in this index: store hostile names no language model" in shown
            for written in (
                "</script><script>window.pwned = 1</script>",
                "<!--<script>",
                r"\u2028\u2029",
                r"left\u202eright\u2066",
                r"zero\u200bwidth\ufeff",
                r"bell\x07nul\x00esc\x1b[31m",
                "שלום עולם",
                "{{scripts}}",
            ):
                assert written in shown
            assert not re.search("[\u2028\u202e\u200b\x07\x1b]", shown)
            assert "x" * LONGEST + "…" in shown
            assert "x" * (LONGEST + 1) not in shown
            page.goto(at(hostile, 0))
            page.locator(".context .t", has_text="xxxxxxxx").first.dispatch_event("click")
            assert "100,000 characters" in page.locator("#tip").inner_text()
            assert page.evaluate("window.pwned") is None
            assert page.locator("#main img, #main script").count() == 0

    def test_nothing_else_may_run_or_be_asked_for(self, chromium: Chromium, stories: Made) -> None:
        with chromium.tab(stories.page, forgive=("Content Security Policy", "/nowhere")) as page:
            ready(page)
            page.evaluate(
                """() => {
                    const script = document.createElement("script");
                    script.textContent = "window.pwned = 1";
                    document.body.append(script);
                    document.body.insertAdjacentHTML("beforeend", "<img src=nowhere onerror='window.pwned = 2'>");
                }"""
            )
            refused = page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'answered', () => 'refused')")
            assert refused == "refused"
            assert page.evaluate("window.pwned") is None

    def test_a_dictionary_in_which_nothing_lives(
        self, chromium: Chromium, home: Path, tmp_path: Path, stories: Made
    ) -> None:
        tokens = torch.zeros(4, CONTEXT, dtype=torch.int64)
        dead = Made(make(home, "dead", tokens, None, torch.zeros(4, CONTEXT, 5)), tmp_path)
        with chromium.tab(dead.page) as page:
            ready(page)
            assert rows(page) == [0, 1, 2, 3, 4]
            page.get_by_role("button", name="live 0").click()
            assert page.get_by_text("No latent matches.").is_visible()
            page.goto(at(dead, 4))
            page.get_by_text("It never fires on this store").wait_for()


@needs_browser
class TestServed:
    @pytest.fixture
    def served(self, stories: Made) -> Iterator[SimpleNamespace]:
        """A server of the page and its documents: the other end of the seam."""
        asked: list[str] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                kind, status, body = "application/json", 200, ""
                if self.path == "/":
                    extra = (
                        "views.more = { title: 'More', draw: (main, rest) => main.replaceChildren(`more of ${rest}`) };"
                    )
                    extra += "panels.push((latent) => h('p', { id: 'added' }, `added to ${latent.latent}`));"
                    kind, body = "text/html", shell("served", {"base": "/run"}, scripts=[extra])
                elif self.path == "/run/summary":
                    body = dumped(stories.documents.summary())
                elif self.path in ("/run/block/0", "/run/block/2"):
                    body = dumped(stories.documents.block(int(self.path[-1])))
                else:
                    status = 404
                self.send_response(status)
                self.send_header("Content-Type", f"{kind}; charset=utf-8")
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: Any) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}/", asked=asked)
        server.shutdown()
        server.server_close()
        thread.join()

    def test_the_same_page_from_a_server(self, chromium: Chromium, served: SimpleNamespace) -> None:
        with chromium.tab(served.url, forgive=("404",)) as page:
            ready(page)
            assert rows(page)[:3] == [0, 1, 2]
            page.goto(f"{served.url}#/latent/69")
            page.get_by_role("heading", name="Latent 69").wait_for()
            assert page.locator(".context").count() > 16
            assert page.locator("#added").inner_text() == "added to 69"
            assert [path for path in served.asked if "block" in path] == ["/run/block/2"]
            page.goto(f"{served.url}#/latent/40")
            page.get_by_text("Latent 40 cannot be shown: block/1: the server answered 404").wait_for()
            page.get_by_role("link", name="More").click()
            page.get_by_text("more of").wait_for()
            page.goto(f"{served.url}#/more/this")
            page.get_by_text("more of this").wait_for()
            page.locator("#home").click()
            page.locator("#view").wait_for(state="hidden")
