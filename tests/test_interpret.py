"""`hsae interpret` on latents whose meaning is known: what it says of them, how it scores that, and what it keeps."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import planted_index as planted_latents
import pytest
from planted_index import ANIMAL, BIGRAM, DEAD, DENSE, NAME, NOISE, RARE, WORD
from rich.cells import cell_len
from rich.console import Console
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from hsae.config import build
from hsae.errors import UserError
from hsae.evidence import open_subject
from hsae.inspect.tokens import Pieces
from hsae.interpret import InterpretConfig, interpret
from hsae.interpret.examples import EXPLAIN, SCORE, Contexts, Halves
from hsae.interpret.local import Local, shuffled
from hsae.interpret.results import Book, Explanation, Score, path_of, read_book, read_explanations, write_book
from hsae.interpret.rules import LENGTH


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Halves:
    return Halves(planted_latents.write(tmp_path_factory.mktemp("index") / "index.safetensors"))


@pytest.fixture(scope="module")
def local(halves: Halves) -> Local:
    return Local(halves, planted_latents.tokenizer())


@pytest.fixture(scope="module")
def found(halves: Halves, local: Local) -> dict[int, Explanation]:
    heard = []
    explanations = local.explain([i for i in range(8) if i != DEAD], heard.append)
    assert sum(heard) == 7
    return explanations


def test_planted_latents_are_named_and_score_as_they_must(found: dict[int, Explanation]):
    assert found[WORD].text == "‘time’"
    assert found[BIGRAM].text == "‘go’ after ‘to’"
    assert sorted(found[ANIMAL].text.split(" / ")) == ["‘bird’", "‘cat’", "‘dog’"]
    assert found[NAME].text.startswith("a capitalised word inside a sentence")
    for latent in (WORD, BIGRAM, ANIMAL, NAME):
        one = found[latent]
        assert one.why == ""
        assert one.score == pytest.approx(1, abs=0.03)
        for other in (one.fuzzing, one.within, one.top):
            assert other is not None
            assert other.value > 0.97
        assert all(hits == of > 0 for hits, of in one.quantiles)
        assert one.low is not None
        assert one.low > 0.8


def test_noise_is_not_given_a_meaning(found: dict[int, Explanation]):
    noise = found[NOISE]
    assert noise.text == "no clear pattern"
    assert noise.detection is not None
    assert noise.fuzzing is not None
    assert (noise.detection.value, noise.fuzzing.value) == (0.5, 0.5)
    assert noise.detection.found == 0
    assert noise.detection.rejected == noise.detection.silent > 0


def test_what_cannot_be_scored_says_why(halves: Halves, found: dict[int, Explanation]):
    assert halves.reason(DEAD) == "never fires"
    rare = found[RARE]
    assert rare.why.startswith("too few contexts: ")
    assert rare.text == "‘song’"
    assert (rare.score, rare.low, rare.high, rare.fuzzing, rare.within) == (None,) * 5
    dense = found[DENSE]
    assert dense.why == "fires in nearly every window"
    assert dense.detection is dense.fuzzing is None
    assert dense.within is not None


def test_the_baseline_knows_one_token_and_the_control_nothing(found: dict[int, Explanation]):
    assert found[WORD].token == found[WORD].detection
    for latent, best in ((ANIMAL, 0.9), (BIGRAM, 0.95)):
        token, own = found[latent].token, found[latent].detection
        assert token is not None
        assert own is not None
        assert 0.5 < token.value < best < own.value
    others = [e.shuffled.value for e in found.values() if e.shuffled]
    assert len(others) == 5  # those with a score
    assert abs(np.mean(others) - 0.5) < 0.1
    assert all(value < 0.75 for value in others)


def test_each_latent_is_controlled_by_another_one():
    others = shuffled([3, 5, 7, 11, 13])
    assert sorted(others) == sorted(others.values()) == [3, 5, 7, 11, 13]
    assert all(latent != other for latent, other in others.items())
    assert shuffled([4]) == {}


def test_no_sequence_is_in_both_halves(halves: Halves):
    tokens = planted_latents.corpus()
    rows = [str(row)[1:-1] for row in tokens.tolist()]

    def sequences(contexts: Contexts) -> set[int]:
        """Found by their text, which the halves do not know."""
        return {i for one in contexts.tokens for i, row in enumerate(rows) if str(one[one >= 0].tolist())[1:-1] in row}

    explain, judge = (halves.of(ANIMAL, half) for half in (EXPLAIN, SCORE))
    assert len(explain.drawn) + len(judge.drawn) == 30
    for parts, parity in ((explain, 0), (judge, 1)):
        for contexts in (parts.drawn, parts.top, parts.windows[np.arange(20)]):
            assert {i % 2 for i in sequences(contexts)} == {parity}


def test_a_context_is_not_taken_twice(halves: Halves):
    for latent, half in itertools.product((RARE, WORD, NAME), (EXPLAIN, SCORE)):
        part = halves.of(latent, half)
        places = [
            (tokens.tolist(), code.tolist())
            for c in (part.drawn, part.top)
            for tokens, code in zip(c.tokens, c.code, strict=True)
        ]
        assert all(places.count(place) == 1 for place in places)
    # It fires in few sequences, so that strongest contexts are drawn ones too.
    strongest = len({*planted_latents.fires(RARE, planted_latents.corpus()).nonzero()[0].tolist()})
    left = sum(len(halves.of(RARE, half).top) for half in (EXPLAIN, SCORE))
    assert 0 < left < strongest


def test_windows_carry_the_latents_own_code(halves: Halves):
    half = halves.of(WORD, SCORE)
    time = planted_latents.WORDS.index("time")
    assert ((half.windows.code > 0) == (half.windows.tokens == time)).all()
    assert (half.quiet == ~(half.windows.tokens == time).any(1)).all()


def test_texts_are_short(halves: Halves):
    words = {word + "x" * 30: i for i, word in enumerate(planted_latents.WORDS)}
    reader = Local(halves, Tokenizer(WordLevel(words, unk_token="zero" + "x" * 30)))
    texts = {i: one.text for i, one in reader.explain([NAME, ANIMAL], lambda done: None).items()}
    assert texts[ANIMAL].count("x" * 30) == 2  # a third word has no room
    assert all(0 < len(text) <= LENGTH for text in texts.values())


def test_a_tokeniser_is_not_needed(halves: Halves):
    reader = Local(halves, None)
    number = planted_latents.WORDS.index("time")
    assert reader.explain([WORD], lambda done: None)[WORD].text == f"‘⟨{number}⟩’"
    assert Pieces(None).one(number) == f"⟨{number}⟩"


@pytest.fixture
def known(cache: Path) -> str:
    """A run of two SAEs with the planted latents; a third diverged."""
    return planted_latents.write_run(cache).name


def shown(settings: InterpretConfig, width: int = 80) -> str:
    file = io.StringIO()
    interpret(settings, Console(file=file, width=width))
    return file.getvalue()


def test_from_the_command_to_the_faces(known: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    subject = open_subject(known, "bp")
    assert read_explanations(subject) == {}
    text = shown(InterpretConfig(run=known))
    assert all(cell_len(line) <= 80 for line in text.splitlines())
    assert "run known · explained by rules from statistics" in text
    assert re.search(r"^bp-tied +0 +8 +5 +5 +[\d.]+% +1 +1 +1 +0$", text, re.M)
    assert "hebb-tied" not in text
    kept = read_explanations(subject)
    assert sorted(kept) == list(range(8))
    scored = [e for e in kept.values() if e.detection]
    assert [e.latent for e in scored] == [WORD, BIGRAM, NAME, NOISE, ANIMAL]
    assert kept[BIGRAM].text == "‘go’ after ‘to’"
    assert kept[BIGRAM].score == pytest.approx(1, abs=0.02)
    assert kept[DEAD].why == "never fires"
    where = planted_latents.fires(NAME, planted_latents.corpus())
    assert kept[NAME].rate == pytest.approx(where.mean())
    capsys.readouterr()
    # The second time nothing is explained.
    monkeypatch.setattr(Local, "explain", lambda *_: pytest.fail("explained again"))
    assert shown(InterpretConfig(run=known)) == text
    assert "explaining" not in capsys.readouterr().err
    document = json.loads(shown(InterpretConfig(run=known, setups=("bp",), json=True)))
    (setup,) = document["setups"]
    assert setup["counts"]["scored"] == setup["detection"]["latents"] == len(scored)
    values = [e.detection.value for e in scored if e.detection]
    assert setup["detection"]["median"] == pytest.approx(float(np.median(values)))
    assert setup["detection"]["above_0.8"] == pytest.approx(np.mean(np.array(values) > 0.8))
    assert sum(band["latents"] for band in setup["bands"]) == len(scored)
    inside = [e.detection.value for e in scored if e.detection and 0.01 < e.rate <= 1]
    assert setup["bands"][-1]["detection_mean"] == pytest.approx(np.mean(inside))
    assert setup["bands"][-1]["detection"] == pytest.approx(np.median(inside))
    assert setup["distinct"] == len({e.text for e in scored})
    assert [e["latent"] for e in setup["explanations"]] == list(range(8))
    total = sum(e.rate for e in kept.values())
    assert setup["firings_scored"] == pytest.approx(sum(e.rate for e in scored) / total)


def test_a_sample_first_and_the_rest_later(known: str):
    some = InterpretConfig(run=known, setups=("bp",), sample=3)
    shown(some)
    subject = open_subject(known, "bp")
    first = {i: e for i, e in read_explanations(subject).items() if e.detection}
    assert len(first) == 3
    shown(some)
    assert {i: e for i, e in read_explanations(subject).items() if e.detection} == first
    shown(InterpretConfig(run=known, setups=("bp",)))
    every = {i: e for i, e in read_explanations(subject).items() if e.detection}
    assert len(every) > 3
    assert {i: every[i] for i in first} == first


def test_reading_explanations_needs_no_torch(known: str, cache: Path):
    shown(InterpretConfig(run=known, setups=("bp",)))
    code = (
        "import sys; from hsae.evidence import open_subject; from hsae.interpret.results import read_explanations;"
        "print(len(read_explanations(open_subject('known', 'bp'))), 'torch' in sys.modules)"
    )
    environment = {**os.environ, "HSAE_CACHE": str(cache)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["8", "False"]


def test_a_book_is_read_as_it_was_written(known: str):
    subject = open_subject(known, "bp")
    whole = Score(0.75, 0.5, 0.875, 3, 4, 5, 8)
    one = Explanation(3, "‘a’; \x1b", "", 0.25, whole, whole, None, whole, ((1, 2), (0, 3)), whole, None, whole, None)
    explanations = {3: one, 7: Explanation(7, "", "never fires")}
    settings = {"explainer": "local"}
    path = path_of(subject, settings)
    assert path.parent == subject.index_path.parent
    write_book(path, subject, Book(settings, explanations))
    assert read_explanations(subject) == explanations
    book = read_book(path, subject)
    assert book is not None
    assert book.settings == settings
    # Written later, by another explainer.
    other = path_of(subject, {"explainer": "openai", "model": "m", "endpoint": "http://e"})
    assert other != path
    write_book(other, subject, Book({"explainer": "openai"}, {3: replace(one, text="other")}))
    os.utime(path, (1, 1))
    assert read_explanations(subject)[3].text == "other"
    for damage in ("", "{}", "[1]", other.read_text(encoding="utf-8")[:-20]):
        other.write_text(damage, encoding="utf-8")
        assert read_explanations(subject) == explanations
    # Of another index.
    data = json.loads(path.read_text(encoding="utf-8"))
    data["index"]["store"] = "another"
    path.write_text(json.dumps(data), encoding="utf-8")
    assert read_explanations(subject) == {}
    assert read_book(path, subject) is None


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ({"explainer": "openai"}, "model must be named for openai"),
        ({"explainer": "openai", "model": "m", "endpoint": "ftp://x"}, "endpoint must be an http"),
        ({"sample": -1}, "sample must be 0 or above"),
        ({"setups": ["bp", "bp"]}, "setups must be different"),
        ({"explainer": "oracle"}, "explainer must be one of"),
    ],
)
def test_settings_that_cannot_be(table: dict[str, Any], line: str):
    with pytest.raises(UserError, match=line):
        build(InterpretConfig, table, "a test")


def test_a_setup_that_is_not_there(known: str):
    with pytest.raises(UserError, match="has no setup 'nothing'"):
        shown(InterpretConfig(run=known, setups=("bp", "nothing")))
    with pytest.raises(UserError, match=r"hebb-tied .* diverged"):
        shown(InterpretConfig(run=known, setups=("hebb-tied",)))
    with pytest.raises(UserError, match="no run 'nope'"):
        shown(InterpretConfig(run="nope"))
