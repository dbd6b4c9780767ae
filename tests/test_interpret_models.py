"""Explaining by a language model: what it is asked, what becomes of its answers, and endpoints that fail."""

from __future__ import annotations

import http.server
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import planted_index as planted_latents
import pytest
from planted_index import ANIMAL, BIGRAM, NAME, NOISE, WORD
from rich.console import Console
from tiny_lm import make_model

from hsae.errors import UserError
from hsae.evidence import open_subject
from hsae.interpret import InterpretConfig, interpret, prompts
from hsae.interpret.endpoint import TRIES, Endpoint
from hsae.interpret.examples import Halves
from hsae.interpret.judge import JUDGING, TOGETHER, Judge
from hsae.interpret.results import read_explanations, to_row

Answer = Callable[[dict[str, Any]], tuple[int, dict[str, str], bytes]]


def chat(text: str) -> tuple[int, dict[str, str], bytes]:
    """A completion, as the protocol has it."""
    usage = {"prompt_tokens": 10, "completion_tokens": 3}
    return 200, {}, json.dumps({"choices": [{"message": {"content": text}}], "usage": usage}).encode()


def knowing(messages: list[dict[str, str]]) -> str:
    """A model that knows one word: it explains everything by ‘time’, and judges by looking for it."""
    lines = messages[-1]["content"].splitlines()
    if not lines[0].startswith("Description: "):
        return "I think so.\n[EXPLANATION]: the word ‘time’"
    assert lines[0] == "Description: the word ‘time’"
    examples = [line.partition(": ")[2] for line in lines[2:]]
    marked = "<<" in "".join(examples)
    return str([int(("<< time>>" if marked else " time ") in f"{example} ") for example in examples])


class Server:
    """An endpoint on this machine, and what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.script: list[Answer] = []
        self.answer: Answer = lambda body: chat(knowing(body["messages"]))
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.asked.append((self.path, dict(self.headers), body))
                status, headers, data = (server.script.pop(0) if server.script else server.answer)(body)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def endpoint(server: Server, timeout: float = 5.0) -> Endpoint:
    return Endpoint(server.address + "/", "small", 2, timeout, pause=0.01)


HELLO = [{"role": "user", "content": "hello"}]


def test_a_question_is_asked_as_the_protocol_says(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "a key")
    server.answer = lambda body: chat("ciao")
    asking = endpoint(server)
    assert asking.answer(HELLO, 7) == "ciao"
    path, headers, body = server.asked[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer a key"
    assert body == {"model": "small", "messages": HELLO, "max_tokens": 7, "temperature": 0}
    assert asking.cost == "1 requests, 10 tokens read, 3 written"
    monkeypatch.delenv("OPENAI_API_KEY")
    asking.answer(HELLO, 7)
    assert "Authorization" not in server.asked[1][1]


@pytest.mark.parametrize(
    "bad",
    [
        (429, {"Retry-After": "0"}, b"slow down"),
        (500, {}, b"oops"),
        (503, {}, b""),
        (200, {}, b"<html>"),
        (200, {}, b"[]"),
        (200, {}, b'{"choices": []}'),
    ],
)
def test_what_may_pass_is_tried_again(server: Server, bad: tuple[int, dict[str, str], bytes]):
    server.answer = lambda body: chat("at last")
    server.script = [lambda body: bad] * 2
    assert endpoint(server).answer(HELLO, 7) == "at last"
    assert len(server.asked) == 3


def test_it_is_not_tried_for_ever(server: Server):
    server.answer = lambda body: (500, {}, b"out of\norder")
    with pytest.raises(
        UserError, match=r"6 tries failed, the last with: 500 .*: out of order; the same command goes on"
    ):
        endpoint(server).answer(HELLO, 7)
    assert len(server.asked) == TRIES == 6


def test_a_slow_answer_is_asked_for_again(server: Server):
    def slow(body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        time.sleep(0.5)
        return chat("late")

    server.script = [slow]
    server.answer = lambda body: chat("in time")
    assert endpoint(server, timeout=0.1).answer(HELLO, 7) == "in time"


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "refuses the key in \\$OPENAI_API_KEY: 401"),
        (403, "refuses the key"),
        (404, "model small: 404"),
        (400, "400"),
    ],
)
def test_what_will_not_pass_is_said_at_once(server: Server, status: int, words: str):
    server.answer = lambda body: (status, {}, b"no")
    with pytest.raises(UserError, match=words) as caught:
        endpoint(server).answer(HELLO, 7)
    assert "\n" not in str(caught.value)
    assert len(server.asked) == 1


def test_a_key_is_not_carried_elsewhere(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "a key")
    server.answer = lambda body: (302, {"Location": server.address.replace("127.0.0.1", "localhost") + "/x"}, b"")
    with pytest.raises(UserError, match="302"):
        endpoint(server).answer(HELLO, 7)
    assert len(server.asked) == 1


def test_models_with_other_words_for_the_limit(server: Server):
    def picky(body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        if "max_tokens" in body:
            return 400, {}, b"Unsupported parameter: 'max_tokens'; use 'max_completion_tokens' instead."
        if "temperature" in body:
            return 400, {}, b"Unsupported value: 'temperature' does not support 0."
        return chat("fine")

    server.answer = picky
    asking = endpoint(server)
    assert asking.answer(HELLO, 7) == "fine"
    assert server.asked[-1][2] == {"model": "small", "messages": HELLO, "max_completion_tokens": 7}
    assert asking.answer(HELLO, 7) == "fine"
    assert len(server.asked) == 4


def test_no_server(server: Server):
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(UserError, match="nothing answers there"):
        endpoint(server).answer(HELLO, 7)


@pytest.mark.parametrize(
    ("address", "here"),
    [("http://localhost:1/v1", True), ("http://[::1]/v1", True), ("https://api.openai.com/v1", False)],
)
def test_what_is_on_this_machine(address: str, here: bool):
    assert Endpoint(address, "m", 1, 1.0).is_here is here


def test_answers_are_read_for_what_they_are():
    assert prompts.read_judgement("[1, 0,1]", 3) == [1, 0, 1]
    assert prompts.read_judgement("For example [x]: the list is\n```python\n[0, 1]\n```", 2) == [0, 1]
    for wrong in ("", "1, 0", "[1, 0]", "[1, 0, 2]", "[1, 0, null]", "[[1, 0, 1]", '["1", "0", "1"]', "[1, 0, 1"):
        assert prompts.read_judgement(wrong, 3) == ([1, 0, 1] if wrong == "[[1, 0, 1]" else [-1] * 3)
    assert prompts.read_explanation("so\n[EXPLANATION]: first\n[EXPLANATION]: the last one \nmore") == "the last one"
    assert prompts.read_explanation("[EXPLANATION]:\nbelow") == "below"
    assert prompts.read_explanation("no idea") == ""
    assert prompts.read_explanation("[EXPLANATION]: \x1b[31mred") == r"\x1b[31mred"
    long = prompts.read_explanation("[EXPLANATION]: " + "long " * 50)
    assert len(long) <= 100
    assert long.endswith("…")


def test_excerpts_are_marked_in_runs():
    text = [" the", " big", " red", "\n", " dog"]
    assert prompts.marked(text, [False, True, True, False, True]) == " the<< big red>>⏎<< dog>>"
    assert prompts.marked(text, [False] * 5) == " the big red⏎ dog"


class Scripted:
    """A model that answers by a function, and remembers what it was asked."""

    concurrency = 1

    def __init__(self, say: Callable[[list[dict[str, str]]], str]) -> None:
        self.say, self.stop, self.asked = say, threading.Event(), []

    def answer(self, messages: list[dict[str, str]], tokens: int) -> str:
        self.asked.append((messages[-1]["content"], tokens))
        return self.say(messages)


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Halves:
    return Halves(planted_latents.write(tmp_path_factory.mktemp("index") / "index.safetensors"))


def judge(halves: Halves, model: Any, folder: Path) -> Judge:
    return Judge(model, halves, planted_latents.tokenizer(), folder / "some.journal")


def test_a_model_that_knows_scores_and_one_that_does_not_does_not(halves: Halves, tmp_path: Path):
    model = Scripted(knowing)
    found = judge(halves, model, tmp_path).explain([WORD, ANIMAL], lambda done: None)
    word, animal = found[WORD], found[ANIMAL]
    assert word.text == "the word ‘time’"
    for one in (word.detection, word.fuzzing):
        assert one is not None
        assert one.value == 1
        assert one.active == one.silent == len(halves.of(WORD, 1).drawn)
    assert all(hits == of for hits, of in word.quantiles)
    assert animal.detection is not None
    assert animal.fuzzing is not None
    assert abs(animal.detection.value - 0.5) < 0.25
    assert animal.fuzzing.found == 0
    # The control: each by the other's words, which are the same here.
    assert word.shuffled is not None
    assert word.shuffled.value == 1
    explaining = [text for text, _ in model.asked if not text.startswith("Description: ")]
    assert len(explaining) == 2
    first = explaining[0].splitlines()
    assert first[0].startswith("Example 1: ")
    assert "<< time>>" in first[0]
    assert first[1].startswith("Activations: (time, ")
    assert len(first) == 2 * 20
    strengths = [int(part.rstrip(")").split(", ")[1]) for line in first[1::2] for part in line[13:].split("), ")]
    assert max(strengths) == 10
    assert min(strengths) >= 1
    questions = [text.splitlines() for text, tokens in model.asked if tokens == JUDGING]
    assert {len(lines) - 2 for lines in questions} >= {TOGETHER}
    # Right and wrong ones are mixed: hardly any request about the word has one answer only.
    mixed = [len(set(json.loads(knowing([{"content": "\n".join(lines)}])))) == 2 for lines in questions]
    assert sum(mixed) >= 20


def test_a_model_that_says_nothing_of_use(halves: Halves, tmp_path: Path):
    silent = judge(halves, Scripted(lambda messages: "hm"), tmp_path).explain([WORD, NAME], lambda done: None)
    assert {one.why for one in silent.values()} == {"the model gave no explanation"}
    (tmp_path / "some.journal").unlink()

    def vague(messages: list[dict[str, str]]) -> str:
        return "dunno" if messages[-1]["content"].startswith("Description") else "[EXPLANATION]: things"

    one = judge(halves, Scripted(vague), tmp_path).explain([WORD], lambda done: None)[WORD]
    assert (one.text, one.why, one.detection) == ("things", "the model's judgements could not be read", None)


def test_what_was_paid_for_is_not_asked_again(halves: Halves, tmp_path: Path):
    class Broken(Exception):
        pass

    def tires(messages: list[dict[str, str]]) -> str:
        if len(model.asked) > 16:
            raise Broken
        return knowing(messages)

    model = Scripted(tires)
    latents = [WORD, BIGRAM, NOISE]
    with pytest.raises(Broken):
        judge(halves, model, tmp_path).explain(latents, lambda done: None)
    kept = (tmp_path / "some.journal").read_text(encoding="utf-8")
    assert sum(line.startswith('{"latent"') for line in kept.splitlines()) == 1
    # The next line was cut off in the middle.
    (tmp_path / "some.journal").write_text(kept + kept.strip()[:40], encoding="utf-8")
    again, heard = Scripted(knowing), []
    found = judge(halves, again, tmp_path).explain(latents, heard.append)
    assert sorted(found) == latents
    assert heard == [1, 1, 1]
    assert sum(not text.startswith("Description: ") for text, _ in again.asked) == 2
    whole = judge(halves, Scripted(knowing), tmp_path / "fresh").explain(latents, lambda done: None)
    assert [to_row(one) for one in whole.values()] == [to_row(found[latent]) for latent in whole]


def shown(settings: InterpretConfig) -> str:
    file = io.StringIO()
    interpret(settings, Console(file=file, width=80))
    return file.getvalue()


def test_by_an_endpoint_from_end_to_end(cache: Path, server: Server, capsys: pytest.CaptureFixture[str]):
    planted_latents.write_run(cache)
    settings = InterpretConfig(
        setups=("bp",), explainer="openai", model="small", endpoint=server.address, concurrency=3, sample=3
    )
    text = shown(settings)
    assert "explained by openai small" in text
    error = capsys.readouterr().err
    assert "are sent to" not in error  # it is on this machine
    assert f"{len(server.asked):,} requests, {10 * len(server.asked):,} tokens read" in error
    kept = read_explanations(open_subject("known", "bp"))
    explained = [one for one in kept.values() if one.text]
    assert len(explained) == 3
    assert {one.text for one in explained} == {"the word ‘time’"}
    assert all((one.score == 1) == (one.latent == WORD) for one in explained)
    assert not list((cache / "runs" / "known" / "evidence").glob("*.journal"))
    asked = len(server.asked)
    assert shown(settings) == text
    assert len(server.asked) == asked


def test_an_endpoint_that_breaks_down_costs_nothing_that_is_done(cache: Path, server: Server):
    planted_latents.write_run(cache)
    settings = InterpretConfig(
        setups=("bp",), explainer="openai", model="small", endpoint=server.address, concurrency=1, sample=3
    )
    server.script = [server.answer] * 20 + [lambda body: (403, {}, b"no money left")]
    with pytest.raises(UserError, match="no money left"):
        shown(settings)
    asked = len(server.asked)
    assert asked == 21
    shown(settings)
    explaining = [b for _, _, b in server.asked[asked:] if not b["messages"][-1]["content"].startswith("Description")]
    assert len(explaining) == 2  # three latents, of which one was done


def test_text_that_leaves_the_machine_is_said_once(cache: Path, server: Server, monkeypatch, capsys):
    planted_latents.write_run(cache)
    monkeypatch.setattr(Endpoint, "is_here", False)
    shown(InterpretConfig(explainer="openai", model="small", endpoint=server.address, sample=1))
    assert capsys.readouterr().err.count("are sent to http://127.0.0.1") == 1


def test_by_a_model_on_this_machine(cache: Path, tmp_path: Path):
    planted_latents.write_run(cache)
    folder = make_model(tmp_path / "tiny")
    text = shown(InterpretConfig(setups=("bp",), explainer="transformers", model=str(folder), sample=1))
    assert "transformers" in text
    tried = [one for one in read_explanations(open_subject("known", "bp")).values() if "model" in one.why or one.text]
    assert len(tried) == 1  # random weights: it says nothing of use, and that is said
    with pytest.raises(UserError, match=r"cannot be loaded|no config\.json"):
        shown(InterpretConfig(setups=("bp-tied",), explainer="transformers", model=str(tmp_path), sample=1))
