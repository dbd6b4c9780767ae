"""The parts of `hsae interpret`: what is seen of a token, rules and their words, scores and their intervals."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import planted_index as planted_latents
import pytest
from planted_index import ANIMAL, NAME

from hsae.inspect.tokens import Pieces
from hsae.interpret import score
from hsae.interpret.candidates import SHAPES, Lesson, candidates
from hsae.interpret.examples import EXPLAIN, SCORE, Contexts, Halves
from hsae.interpret.explain import Finder
from hsae.interpret.features import FIRST, INSIDE, Lexicon
from hsae.interpret.local import Local, answers
from hsae.interpret.rules import Clause, Rule, clause, keys, words_of
from hsae.interpret.words import CLASS_NAMES, KINDS, kind, word_class
from hsae.intervals import wilson


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Halves:
    return Halves(planted_latents.write(tmp_path_factory.mktemp("index") / "index.safetensors"))


@pytest.fixture(scope="module")
def local(halves: Halves) -> Local:
    return Local(halves, planted_latents.tokenizer())


@pytest.fixture(scope="module")
def lesson(halves: Halves, local: Local) -> Lesson:
    half = halves.of(ANIMAL, EXPLAIN)
    return Lesson(half, local.lexicon.read(np.concatenate([half.drawn.tokens, half.top.tokens])), local.background)


def test_candidates_are_what_they_say(lesson: Lesson):
    found = candidates(lesson)
    assert {one.shape for one in found.clauses} > {("word",), ("kind",), ("previous",), ("word", "previous")}
    for i, one in enumerate(found.clauses):
        own, other = one.holds(lesson.features), one.holds(lesson.background.features)[lesson.quiet]
        assert (found.found[i] == own[lesson.marked]).all()
        assert (found.alarms[i] == other.any(1)).all()
        assert found.noise[i] == pytest.approx((own[lesson.silent].mean() + other.mean()) / 2)


def test_the_best_statement_of_a_shape_is_kept(lesson: Lesson, monkeypatch: pytest.MonkeyPatch):
    def worth(number: int) -> float:
        one = Clause((("previous", number),))
        own, other = one.holds(lesson.features), one.holds(lesson.background.features)[lesson.quiet]
        hits = (own & lesson.marked).sum(1)
        gain = (hits > 0).mean() + (hits / lesson.marked.sum(1)).mean()
        return gain - other.any(1).mean() - (own[lesson.silent].mean() + other.mean()) / 2

    monkeypatch.setattr("hsae.interpret.candidates.KEPT", 1)
    (kept,) = [one for one in candidates(lesson).clauses if one.shape == ("previous",)]
    numbers, times = np.unique(lesson.features["previous"][lesson.marked], return_counts=True)
    several = [number for number, count in zip(numbers.tolist(), times, strict=True) if number and count > 1]
    assert worth(kept.literals[0][1]) == pytest.approx(max(worth(number) for number in several))
    assert len(several) > 3


def test_what_explains_little_explains_nothing(lesson: Lesson, local: Local, monkeypatch: pytest.MonkeyPatch):
    finder = Finder(lesson, local.lexicon)
    assert finder.text(finder.rule()) != "no clear pattern"
    monkeypatch.setattr("hsae.interpret.explain.FAINT", 1.0)
    assert finder.rule() == Rule()


def test_marks_are_the_strong_tokens():
    code = np.array([[0, 1.0, 0.29, 0.3, 0], [0, 0, 0, 0, 0]], np.float32)
    contexts = Contexts(np.array([[1, 2, 3, 4, -1], [5, 6, -1, -1, -1]]), code)
    assert contexts.marked.tolist() == [[False, True, False, True, False], [False] * 5]
    assert contexts.silent.tolist() == [[True, False, False, False, False], [True, True, False, False, False]]


@pytest.mark.parametrize("task", ["fuzzing", "within"])
def test_wrong_marks_are_as_many_and_never_on_the_latents_own_tokens(halves: Halves, task: str):
    half = halves.of(NAME, SCORE)
    trial = getattr(score, task)(half, NAME)
    assert trial.marks is not None
    count = math.ceil((half.drawn.code > 0).sum(1).mean())
    wrong = ~trial.truth
    assert (trial.marks[wrong].sum(1) == count).all()
    assert not (trial.marks & (trial.tokens < 0)).any()
    names = [planted_latents.WORDS.index(name) for name in planted_latents.NAMES]
    assert np.isin(trial.tokens[trial.truth][trial.marks[trial.truth]], names).all()
    assert not np.isin(trial.tokens[wrong][trial.marks[wrong]], names).any()
    assert (trial.tokens[: len(half.drawn)] == half.drawn.tokens).all()
    again = getattr(score, task)(half, NAME).marks
    assert (again == trial.marks).all()
    assert len({tuple(row.nonzero()[0].tolist()) for row in trial.marks[wrong]}) > 5  # not always at one place


def test_half_of_the_marks_decide():
    marks = np.array([[1, 1, 0], [1, 1, 1], [1, 0, 0], [0, 1, 1]], bool)
    trial = score.Trial(np.zeros((4, 3), int), marks, np.array([True, True, False, False]))
    holds = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 1], [0, 1, 1]], bool)
    assert answers(trial, holds).tolist() == [1, 0, 0, 1]
    plain = score.Trial(trial.tokens, None, trial.truth)
    assert answers(plain, np.array([[0, 0, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0]], bool)).tolist() == [0, 1, 1, 0]


def test_balanced_accuracy_and_its_interval():
    # Wilson for 8 of 10 at 95%: .4902 to .9433; for 45 of 50: .7864 to .9565.
    for right, of, low, high in ((8, 10, 0.4902, 0.9433), (45, 50, 0.7864, 0.9565), (0, 10, 0, 0.2775)):
        share, *ends = wilson(right, of)
        assert share == right / of
        assert ends == pytest.approx([low, high], abs=1e-4)
    both = score.balanced(8, 10, 45, 50)
    assert both is not None
    assert both.value == pytest.approx(0.85)
    assert both.low == pytest.approx(0.85 - math.hypot(0.8 - 0.4902, 0.9 - 0.7864) / 2, abs=1e-4)
    assert both.high == pytest.approx(0.85 + math.hypot(0.9433 - 0.8, 0.9565 - 0.9) / 2, abs=1e-4)
    assert (both.found, both.active, both.rejected, both.silent) == (8, 10, 45, 50)
    assert score.balanced(0, 0, 3, 4) is score.balanced(3, 4, 0, 0) is None


def test_the_interval_covers_the_truth_as_often_as_it_says():
    random = np.random.default_rng(0)
    inside = 0
    for _ in range(2000):
        one = score.balanced(int(random.binomial(15, 0.8)), 15, int(random.binomial(100, 0.95)), 100)
        assert one is not None
        inside += one.low <= 0.875 <= one.high
    assert 0.93 < inside / 2000 < 0.985


def test_questions_without_an_answer_do_not_count():
    trial = score.Trial(np.zeros((5, 2), int), None, np.array([True, True, True, False, False]))
    one = trial.score(np.array([1, -1, 0, -1, 0]))
    assert one is not None
    assert (one.found, one.active, one.rejected, one.silent) == (1, 2, 1, 1)
    assert trial.score(np.array([1, 1, 0, -1, -1])) is None


def test_quantiles_begin_with_the_strongest():
    code = np.arange(1, 11, dtype=np.float32)[:, None]
    contexts = Contexts(np.ones((10, 1), int), code)
    right = contexts.strength > 6
    assert score.by_quantile(contexts, right) == ((2, 2), (2, 2), (0, 2), (0, 2), (0, 2))
    few = Contexts(np.ones((3, 1), int), code[:3])
    assert sum(of for _, of in score.by_quantile(few, np.ones(3, bool))) == 3


TEXT = ["Tom", " said", " the", " fun", "ny", " dog", "'s", " ran", ".", " ", "He", ' "', "Hi", "!\n", "7", " to"]


class Spoken(Pieces):
    """Makes the text above of token ids."""

    def one(self, token: int) -> str:
        return TEXT[token]


@pytest.fixture
def lexicon() -> Lexicon:
    return Lexicon(Spoken(None))


def test_what_is_seen_at_each_token(lexicon: Lexicon):
    row = [-1, *range(16)]
    seen = {name: values[0].tolist() for name, values in lexicon.read(np.array([row])).items()}
    word = [lexicon.words[i] for i in seen["word"]]
    assert word == [
        "",
        "Tom",
        "said",
        "the",
        "fun",
        "funny",
        "dog",
        "dog's",
        "ran",
        ".",
        " ",
        "He",
        '"',
        "Hi",
        "!\n",
        "7",
        "to",
    ]
    assert [lexicon.parts[i - 1] if i else "" for i in seen["part"]] == [
        *[""] * 5,
        "ny",
        "",
        "'s",
        *[""] * 3,
        "He",
        *[""] * 5,
    ]
    previous = [lexicon.words[i] for i in seen["previous"]]
    assert previous[:10] == ["", "", "Tom", "said", "the", "the", "funny", "funny", "dog's", "ran"]
    assert [lexicon.words[i] for i in seen["second"]][3:7] == ["Tom", "said", "said", "the"]
    # A sentence begins behind its full stop, and behind a line break; where the last one ended is not known at first.
    assert seen["place"][:10] == [0] * 10
    assert seen["place"][10:] == [FIRST, FIRST, INSIDE, INSIDE, INSIDE, FIRST, INSIDE]
    kinds = [KINDS[i] for i in seen["kind"]]
    assert kinds[1:6] == ["a capitalised word", *["a lower-case word"] * 3, "a later part of a word"]
    assert kinds[9] == "a full stop"
    assert kinds[12:16] == ["a quotation mark", "a capitalised word", "a line break", "a number"]
    assert [CLASS_NAMES[i] for i in seen["class"]][2:4] == ["a form of ‘say’", "an article"]
    assert CLASS_NAMES[seen["before"][4]] == "an article"
    assert [lexicon.tails[i] for i in seen["tail2"]][4:6] == ["un", "ny"]
    assert [chr(i) if i else "" for i in seen["initial"]][1:4] == ["t", "s", "t"]
    assert seen["first1"] == [0, 1, *[0] * 15]
    assert seen["first4"] == [0, *[1] * 4, *[0] * 12]
    assert not any(values[0] for values in seen.values())  # nothing is said of what is outside of the sequence


def test_a_window_that_begins_inside_a_sequence_has_no_first_token(lexicon: Lexicon):
    seen = lexicon.read(np.array([[0, 1, 2]]))
    assert not seen["first1"].any()
    assert not seen["first16"].any()


def test_a_quotation_mark_is_no_word_of_the_sentence(lexicon: Lexicon):
    row = [TEXT.index(text) for text in (".", ' "', "Hi", " said", "!\n", "Hi")]
    assert lexicon.read(np.array([row]))["place"].tolist() == [[0, FIRST, FIRST, INSIDE, INSIDE, FIRST]]


def test_nothing_behind_a_token_is_looked_at(lexicon: Lexicon):
    random = np.random.default_rng(0)
    rows = random.integers(0, len(TEXT), (20, 12))
    whole = lexicon.read(rows)
    for length in (1, 5, 11):
        part = lexicon.read(rows[:, :length])
        assert all((part[name] == whole[name][:, :length]).all() for name in whole)


def test_classes_of_words():
    assert CLASS_NAMES[word_class("She")] == "a pronoun"
    assert CLASS_NAMES[word_class("don’t")] == "a form of ‘have’ or ‘do’"
    assert word_class("dog") == 0
    assert [KINDS[kind(w)] for w in ("dog", "Dog", "12", ",", "“", "?!", "\n", "")] == [
        "a lower-case word",
        "a capitalised word",
        "a number",
        "a punctuation mark",
        "a quotation mark",
        "a full stop",
        "a line break",
        "",
    ]


def test_keys_and_clauses_are_one(local: Local):
    features = local.background.features
    for shape in SHAPES:
        key = keys(features, shape)
        some = np.unique(key[key > 0])[:: max(1, len(np.unique(key)) // 7)]
        for one in some.tolist():
            made = clause(shape, one)
            assert made.shape == shape
            assert (made.holds(features) == (key == one)).all()
            by_hand = [
                [all(features[name][w][t] == number for name, number in made.literals) for t in range(3)]
                for w in range(3)
            ]
            assert made.holds(features)[:3, :3].tolist() == by_hand


def test_a_rule_holds_where_one_of_its_clauses_does(local: Local):
    word = {w: i for i, w in enumerate(local.lexicon.words)}
    rule = Rule((Clause((("word", word["go"]), ("previous", word["to"]))), Clause((("word", word["dog"]),))))
    tokens = local.halves.windows(SCORE)
    names = np.array([*planted_latents.WORDS, ""])[tokens]
    before = np.pad(names, ((0, 0), (1, 0)))[:, :-1]
    assert (rule.holds(local.windows) == (((names == "go") & (before == "to")) | (names == "dog"))).all()
    assert not Rule().holds(local.windows).any()


def said(lexicon: Lexicon, *clauses: tuple[tuple[str, Any], ...], going_on: tuple[str, ...] = ()) -> str:
    def literal(name: str, value: Any) -> tuple[str, int]:
        return name, lexicon.number(value) if isinstance(value, str) else value

    rule = Rule(tuple(Clause(tuple(itertools.starmap(literal, one))) for one in clauses))
    return words_of(rule, lexicon, {lexicon.number(word) for word in going_on})


def test_rules_in_words(lexicon: Lexicon):
    lexicon.read(np.arange(16)[None])
    time, it, was = (("word", "time"), ("previous", "it's"), ("previous", "was"))
    assert said(lexicon, (time, it), (time, was)) == "‘time’ after ‘it's’ / ‘was’"
    assert said(lexicon, (time, it), (("word", "way"), it)) == "‘time’ / ‘way’ after ‘it's’"
    assert said(lexicon, (time,), (("word", "sur"),), going_on=("sur",)) == "‘time’ / ‘sur-’"
    assert said(lexicon, (("part", 5),), (("kind", kind("A")), ("place", INSIDE))) == (
        "‘-ny’; a capitalised word inside a sentence"
    )
    assert said(lexicon, (("place", FIRST),)) == "a word at the start of a sentence"
    assert said(lexicon, (was,), (it,)) == "the word after ‘was’ / ‘it's’"
    assert said(lexicon, (("previous", "once"), ("second", "at"))) == "the word after ‘once’ two words after ‘at’"
    assert said(lexicon, (("initial", ord("s")),), (("initial", ord("t")),)) == "a word that begins with s / t"
    assert said(lexicon, (("class", word_class("he")), ("before", word_class("the")))) == "a pronoun after an article"
    assert said(lexicon, (("first4", 1),)) == "among the first 4 tokens of a sequence"
    assert said(lexicon, (("word", "\n"),), (("word", " "),)) == "a line break / a lone space"
    assert said(lexicon, (("word", "\x1b[31m"),), (("word", "\u202e"),)) == r"‘\x1b[31m’ / ‘\u202e’"
    assert said(lexicon) == "no clear pattern"
