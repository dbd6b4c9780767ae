"""`hsae serve` without a browser: what it answers, whom it lets in, what it refuses, and how it starts and ends."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import torch
from damage import agree, edit
from served import CONTEXT, HOSTILE, LATENTS, copied, ended, indexed, line_of, result, until
from starlette.testclient import TestClient

import hsae
from hsae import origin
from hsae.errors import UserError
from hsae.evidence import Index, open_index, open_subject
from hsae.inspect.page import Documents
from hsae.inspect.page.documents import BLOCK
from hsae.intervene.site import open_site
from hsae.intervene.steering import steered
from hsae.run import Run
from hsae.serve import asked
from hsae.serve import jobs as jobs_
from hsae.serve.api import WAITING, Api
from hsae.serve.app import make_app
from hsae.serve.guard import Gate
from hsae.serve.jobs import Job, Lane
from hsae.serve.kept import Kept
from hsae.serve.shelf import Name
from hsae.serve.turns import Busy
from hsae.store import Store

TEXT = "Once upon a time, there was a little dog."
HOOK = "blocks.4.hook_resid_pre"
TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of runs and stores; nobody writes into it but the tests of this file."""
    return copied(tmp_path_factory, tmp_path_factory.mktemp("serve") / "cache")


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    """One for all tests, so that the language model is loaded once."""
    api = Api("cpu", trust_remote_code=False)
    yield api
    api.close(5.0)


@pytest.fixture
def client(made: Path, api: Api, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    monkeypatch.setenv("HSAE_CACHE", str(made))
    return TestClient(make_app(api, Gate()), base_url="http://localhost")


@pytest.fixture
def own(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the cache, to break; without indexes."""
    shutil.copytree(made, tmp_path / "cache", ignore=shutil.ignore_patterns("evidence"))
    monkeypatch.setenv("HSAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def anew() -> tuple[TestClient, Api]:
    api = Api("cpu", trust_remote_code=False)
    return TestClient(make_app(api, Gate()), base_url="http://localhost"), api


# What there is.


def test_every_run_is_listed_and_what_is_not_whole_is_said(client: TestClient, made: Path):
    found = client.get("/api/runs").json()
    runs = {run["name"]: run for run in found["runs"]}
    assert set(runs) == {"one", HOSTILE, "gone", "torn", "begun"}
    assert [run["standing"] for run in found["runs"]] == ["whole"] * 3 + ["unfinished", "damaged"]
    assert "hsae train" in runs["begun"]["note"]
    assert "run.json" in runs["torn"]["note"]
    one, record = runs["one"], Run(made / "runs" / "one").result
    assert one["setups"] == ["bp", "topk"]
    assert one["saes"] == ["one:bp:0", "one:topk:0"]
    best = max(record.rows, key=lambda row: row.evr_pooled or -1)
    assert one["best"] == {"setup": best.setup, "evr_pooled": best.evr_pooled, "l0": best.l0}
    assert (one["latents"], one["hook"], one["store_there"]) == (LATENTS, HOOK, True)
    assert runs["gone"]["store_there"] is False
    assert {store["name"]: store.get("tokens") for store in found["stores"]} == {
        "stories": 300 * CONTEXT,
        "other": 300 * CONTEXT,
    }


def test_an_empty_cache_and_one_that_is_not_there(cache: Path):
    client, _ = anew()
    assert client.get("/api/runs").json() == {"cache": str(cache), "runs": [], "stores": []}


def test_a_runs_table_is_its_own(client: TestClient, made: Path):
    found = client.get("/api/runs/one").json()
    record = Run(made / "runs" / "one").result
    for row, of in zip(found["rows"], record.rows, strict=True):
        assert {key: row[key] for key in ("setup", "seed", "mse", "evr_pooled", "l0", "dead")} == {
            key: getattr(of, key) for key in ("setup", "seed", "mse", "evr_pooled", "l0", "dead")
        }
    assert {row["index"] for row in found["rows"]} <= {"missing", "stands"}
    assert [(store["store"], store["hook"]) for store in found["stores"]] == [("other", HOOK), ("stories", HOOK)]
    assert found["warnings"] == []


def test_another_models_store_is_a_warning_and_a_gone_store_a_line(client: TestClient):
    elsewhere = client.get("/api/runs/one", params={"on": "other", "hook": HOOK}).json()
    assert "another model" in elsewhere["warnings"][0]
    assert [row["sae"] for row in elsewhere["rows"]] == [f"one:{setup}:0@other@{HOOK}" for setup in ("bp", "topk")]
    gone = client.get("/api/runs/gone").json()
    assert {row["index"] for row in gone["rows"]} == {"impossible"}
    assert "nowhere" in gone["warnings"][0]
    answer = client.get("/api/sae/gone:bp:0/summary")
    assert answer.status_code == 409
    assert "nowhere" in line_of(answer)
    # On another store it can be looked at.
    assert client.get("/api/sae/gone:bp:0@stories").json()["store"] == "stories"


def test_a_diverged_sae_is_shown_as_such_and_not_opened(own: Path):
    change = {"diverged": "at step 3", "evr_pooled": None, "l0": None}
    edit(own / "runs" / "one" / "run.json", lambda result: result["rows"][0].update(change))
    client, _ = anew()
    assert client.get("/api/runs/one").json()["rows"][0]["index"] == "diverged"
    listed = next(run for run in client.get("/api/runs").json()["runs"] if run["name"] == "one")
    assert (listed["diverged"], listed["saes"], listed["best"]["setup"]) == (1, ["one:topk:0"], "topk")
    for path, body in (("index", {}), ("read", {"text": "a"}), ("steer", {"latents": [1], "prompt": "a"})):
        answer = client.post(f"/api/sae/one:bp:0/{path}", json=body)
        assert answer.status_code == 409, path
        assert "diverged" in line_of(answer)


@pytest.mark.parametrize(
    "path",
    [
        "/api/runs/nope",
        "/api/runs/%2e%2e",
        "/api/runs/..%2Fruns%2Fone",
        "/api/sae/..:bp:0",
        "/api/sae/one:nope:0",
        "/api/sae/one:bp:7",
        "/api/sae/one:bp:x",
        "/api/sae/one:bp:99999999999999999999",
        "/api/sae/one",
        "/api/sae/one:bp:0@nope",
        "/api/sae/one:bp:0@..",
        "/api/sae/one:bp:0@stories@blocks@4",
        "/api/jobs/999999",
        "/api/nope",
        "/static/nope.js",
        "/static/..%2Fapi.py",
        "/run/nope",
        "/sae/nope:bp:0",
        "/nope",
    ],
)
def test_what_is_not_in_the_cache_is_not_found(client: TestClient, path: str):
    answer = client.get(path)
    assert answer.status_code == 404, answer.text
    if path.startswith("/api/"):
        line_of(answer)


def test_an_absolute_path_names_no_run(client: TestClient, made: Path):
    assert client.get(f"/api/runs/{quote(str(made / 'runs' / 'one'), safe='')}").status_code == 404


# The index and the documents.


def test_an_index_is_built_on_request_and_the_documents_are_the_pages(client: TestClient, made: Path):
    name = "one:bp:0"
    assert client.get(f"/api/sae/{name}").json()["stands"] is False
    answer = client.get(f"/api/sae/{name}/summary")
    assert answer.status_code == 409
    assert "no index" in line_of(answer)
    assert "no index" in line_of(client.post(f"/api/sae/{name}/steer", json={"latents": [1], "prompt": "a"}))
    view = ended(client, client.post(f"/api/sae/{name}/index", json={}))
    assert view["state"] == "done"
    assert client.get(f"/api/sae/{name}").json()["stands"] is True
    assert client.get("/api/runs/one").json()["rows"][0]["index"] == "stands"
    assert next(run for run in client.get("/api/runs").json()["runs"] if run["name"] == "one")["indexed"] == 1
    subject = open_subject(str(made / "runs" / "one"), "bp", 0)
    documents = Documents(subject, Index(subject.index_path))
    assert client.get(f"/api/sae/{name}/summary").json() == json.loads(json.dumps(documents.summary()))
    for number in range(documents.blocks):
        there = client.get(f"/api/sae/{name}/block/{number}").json()
        assert there == json.loads(json.dumps(documents.block(number)))
    assert documents.blocks == -(-LATENTS // BLOCK)
    assert client.get(f"/api/sae/{name}/block/{documents.blocks}").status_code == 404
    answer = client.post(f"/api/sae/{name}/index", json={})
    assert answer.status_code == 409
    assert "stands" in line_of(answer)


def test_the_built_index_is_the_one_that_inspect_builds(client: TestClient, own: Path, made: Path):
    monkey, _ = anew()
    result(monkey, monkey.post("/api/sae/one:topk:0/index", json={}))
    served = Index(open_subject(str(own / "runs" / "one"), "topk", 0).index_path)
    (own / "runs" / "one" / "evidence").rename(own / "kept")
    plain = open_index(open_subject(str(own / "runs" / "one"), "topk", 0))
    for name in ("firings", "maximum", "total", "histogram", "top_tokens", "token_id", "coactive", "near", "promoted"):
        assert (served.array(name) == plain.array(name)).all(), name


def test_a_build_that_is_cancelled_goes_on_from_what_is_saved(own: Path, monkeypatch: pytest.MonkeyPatch):
    from hsae.evidence import build
    from hsae.evidence.build import Passing

    monkeypatch.setattr(build, "ROWS", 20 * CONTEXT)
    client, api = anew()
    passed, reached, let = [], threading.Event(), threading.Event()
    go = Passing.go

    def slow(self: Passing) -> Iterator[int]:
        for count in go(self):
            passed.append(self.next)
            if len(passed) == 3:
                reached.set()
                assert let.wait(10)
            yield count

    monkeypatch.setattr(Passing, "go", slow)
    answer = client.post("/api/sae/one:bp:0/index", json={})
    number = answer.json()["job"]
    assert reached.wait(20)
    # While it runs: told, shared by who asks again, and nobody else waits for it.
    there = client.get(f"/api/jobs/{number}").json()
    assert (there["state"], there["done"], there["total"]) == ("running", 40 * CONTEXT, 300 * CONTEXT)
    assert client.post("/api/sae/one:bp:0/index", json={}).json()["job"] == number
    assert client.get("/api/sae/one:bp:0").json()["job"] == number
    assert client.get("/api/runs/one").json()["rows"][0]["index"] == "building"
    assert [job["job"] for job in client.get("/api/jobs").json()["jobs"]] == [number]
    assert client.delete(f"/api/jobs/{number}").json()["state"] == "cancelled"
    let.set()
    deadline = time.monotonic() + 10
    while client.get("/api/jobs").json()["jobs"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert client.get("/api/sae/one:bp:0").json()["stands"] is False
    assert passed == [20, 40, 60]
    result(client, client.post("/api/sae/one:bp:0/index", json={}))
    assert passed[3] == 80, "it went on behind what was saved"
    assert client.get("/api/sae/one:bp:0/summary").json()["rows"] == 300 * CONTEXT
    assert api.close(1.0)


def test_a_damaged_index_is_none_and_is_made_anew(own: Path):
    client, _ = anew()
    result(client, client.post("/api/sae/one:bp:0/index", json={}))
    (path,) = (own / "runs" / "one" / "evidence").glob("bp-0-*.safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    assert client.get("/api/sae/one:bp:0").json()["stands"] is False
    assert client.get("/api/sae/one:bp:0/block/0").status_code == 409
    result(client, client.post("/api/sae/one:bp:0/index", json={}))
    assert client.get("/api/sae/one:bp:0/block/0").status_code == 200


def test_another_saes_index_in_the_place_of_ones_own_is_none(own: Path):
    client, _ = anew()
    indexed(client, "one:topk:0")
    (other,) = (own / "runs" / "one" / "evidence").glob("topk-0-*.safetensors")
    shutil.copy(other, open_subject(str(own / "runs" / "one"), "bp", 0).index_path)
    assert client.get("/api/sae/one:bp:0").json()["stands"] is False
    assert client.get("/api/sae/one:bp:0/summary").status_code == 409


def test_weights_that_change_are_another_index(own: Path):
    client, _ = anew()
    indexed(client, "one:bp:0")
    before = client.get("/api/sae/one:bp:0/summary").json()
    path = own / "runs" / "one" / "sae.safetensors"
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    tensors["bp/0/b_enc"] = tensors["bp/0/b_enc"] - 0.001
    save_file(tensors, path)
    agree(own / "runs" / "one")
    assert client.get("/api/sae/one:bp:0").json()["stands"] is False
    indexed(client, "one:bp:0")
    after = client.get("/api/sae/one:bp:0/summary").json()
    assert sum(after["columns"]["firings"]) < sum(before["columns"]["firings"])


def test_a_store_that_goes_and_comes_back(own: Path):
    client, _ = anew()
    assert client.get("/api/sae/one:bp:0").status_code == 200
    (own / "activations" / "stories").rename(own / "away")
    answer = client.get("/api/sae/one:bp:0")
    assert answer.status_code == 409
    assert "stories" in line_of(answer)
    (own / "away").rename(own / "activations" / "stories")
    assert client.get("/api/sae/one:bp:0").status_code == 200


def test_an_index_that_cannot_be_kept_is_served_as_long_as_the_server_runs(own: Path, monkeypatch: pytest.MonkeyPatch):
    from hsae.evidence.build import Passing

    passes, real, go = [], tempfile.TemporaryFile, Passing.go

    def closed(*args: Any, **more: Any) -> Any:
        if Path(more.get("dir") or "").name == "evidence":
            raise PermissionError("closed")
        return real(*args, **more)

    monkeypatch.setattr(tempfile, "TemporaryFile", closed)
    monkeypatch.setattr(os, "access", lambda path, mode: "runs" not in Path(path).parts)
    monkeypatch.setattr(Passing, "go", lambda self: passes.append(1) or go(self))
    client, _ = anew()
    result(client, client.post("/api/sae/one:bp:0/index", json={}))
    assert client.get("/api/sae/one:bp:0").json()["stands"] is True
    assert client.get("/api/sae/one:bp:0/block/1").status_code == 200
    assert client.get("/api/runs/one").json()["rows"][0]["index"] == "stands"
    assert not list((own / "runs" / "one" / "evidence").glob("*.safetensors"))
    assert len(passes) == 1


@pytest.mark.parametrize("text", ["[" * 100_000, "{}", "[]", '{"version": 1, "rows": 3}', "\x00", ""])
def test_no_damage_to_one_run_or_store_hides_the_others(own: Path, text: str):
    (own / "runs" / "torn" / "run.json").write_text(text)
    (own / "activations" / "other" / "manifest.json").write_text(text)
    client, _ = anew()
    found = client.get("/api/runs").json()
    assert {run["name"]: run["standing"] for run in found["runs"]}["torn"] == "damaged"
    assert {run["name"] for run in found["runs"]} >= {"one", "gone"}
    assert {store["name"]: bool(store["note"]) for store in found["stores"]} == {"other": True, "stories": False}
    assert client.get("/api/runs/one").status_code == 200


# One's own text, and steering.


def test_reading_a_text_is_the_saes_own_code_of_the_models_activations(client: TestClient, made: Path):
    found = result(client, client.post("/api/sae/one:bp:0/read", json={"text": TEXT}))
    lm = origin.load(Store.open("stories"), "", "cpu")
    ids = lm.tokenizer(TEXT)["input_ids"]
    assert "".join(token["text"] for token in found["tokens"]).endswith(TEXT)
    assert [token["token"] for token in found["tokens"]][-len(ids) :] == ids
    own = torch.tensor([[token["token"] for token in found["tokens"]]])
    code = hsae.load("one", "bp").encode(lm.tap(own, (HOOK,))[HOOK])[0]
    for position, token in enumerate(found["tokens"]):
        assert token["l0"] == int((code[position] > 0).sum())
        for active in token["active"]:
            assert active["activation"] == pytest.approx(code[position, active["latent"]].item(), rel=1e-4)
    assert {one["latent"] for one in found["latents"]} == set((code > 0).any(0).nonzero().flatten().tolist())
    assert found["latents"]


def test_the_model_is_loaded_once_and_few_saes_are_kept(made: Path, monkeypatch: pytest.MonkeyPatch):
    from hsae.serve.bench import SITES

    monkeypatch.setenv("HSAE_CACHE", str(made))
    loaded, load = [], origin.load
    monkeypatch.setattr(origin, "load", lambda *args: loaded.append(args) or load(*args))
    client, api = anew()
    names = ["one:bp:0", "one:topk:0", f"{HOSTILE.replace('<', '%3C')}:bp:0", f"{HOSTILE.replace('<', '%3C')}:topk:0"]
    for name in (*names, names[0]):
        result(client, client.post(f"/api/sae/{name}/read", json={"text": "a dog"}))
    assert len(loaded) == 1
    assert len(api._bench._sites) == SITES


def steer(client: TestClient, **wish: Any) -> Any:
    table = {"latents": [latent_of(client)], "prompt": "Once upon a time", "tokens": 12, **wish}
    return result(client, client.post("/api/sae/one:bp:0/steer", json=table))


def latent_of(client: TestClient) -> int:
    indexed(client, "one:bp:0")
    columns = client.get("/api/sae/one:bp:0/summary").json()["columns"]
    return max(columns["latent"], key=lambda latent: columns["firings"][latent])


def test_steering_is_the_librarys(client: TestClient, made: Path):
    found = steer(client, strength=20, seed=3, temperature=0.8)
    site = open_site(str(made / "runs" / "one"), "bp", 0, device="cpu")
    right = steered(site, [latent_of(client)], "Once upon a time", [20.0], tokens=12, temperature=0.8, sampling_seed=3)
    assert found["unchanged"]["tokens"] == list(right.unchanged.tokens)
    assert found["steered"][0]["tokens"] == list(right.steered[0].tokens)
    assert found["steered"][0]["tokens"] != found["unchanged"]["tokens"]
    assert "".join(found["unchanged"]["text"]) == "".join(right.unchanged.text)


def test_no_strength_changes_nothing_and_ablating_is_setting_to_nothing(client: TestClient):
    none = steer(client, strength=0)
    assert none["steered"][0]["tokens"] == none["unchanged"]["tokens"]
    ablated = steer(client, strength=0, clamp=True)
    assert ablated["clamp"] is True
    assert ablated["steered"][0]["kl"] > 0


def test_what_is_written_shows_while_it_is_and_can_be_cancelled(client: TestClient, monkeypatch: pytest.MonkeyPatch):
    seen: list[Any] = []
    check = Job.check

    def slow(self: Job) -> None:
        if self.partial:
            seen.append(self.partial)
            time.sleep(0.02)
        check(self)

    monkeypatch.setattr(Job, "check", slow)
    table = {"latents": [latent_of(client)], "prompt": "Once upon a time", "tokens": 200, "unit": "activation"}
    answer = client.post("/api/sae/one:bp:0/steer", json=table)
    number, partial = answer.json()["job"], []
    while len(partial) < 3:
        view = client.get(f"/api/jobs/{number}").json()
        assert view["state"] in ("waiting", "running"), view
        if view["partial"] and view["partial"] not in partial:
            assert view["total"] == 200
            partial.append(view["partial"])
        time.sleep(0.02)
    assert partial[2][0].startswith(partial[0][0])
    assert len(partial[0]) == 2
    assert client.delete(f"/api/jobs/{number}").json()["state"] == "cancelled"
    end = time.monotonic() + 5
    while client.get("/api/jobs").json()["jobs"]:
        assert time.monotonic() < end
        time.sleep(0.01)
    written = len(seen)
    time.sleep(0.1)
    assert len(seen) == written < 190


def test_a_dead_latent_has_no_unit(client: TestClient):
    indexed(client, "one:bp:0")
    columns = client.get("/api/sae/one:bp:0/summary").json()["columns"]
    dead = [latent for latent in columns["latent"] if not columns["firings"][latent]]
    assert dead
    answer = client.post("/api/sae/one:bp:0/steer", json={"latents": dead[:1], "prompt": "a", "tokens": 2})
    view = ended(client, answer)
    assert view["state"] == "failed"
    assert "never fires" in view["error"]


def test_a_model_that_cannot_be_loaded_is_a_line(own: Path):
    edit(
        own / "activations" / "stories" / "manifest.json",
        lambda found: found["model"].update(name=str(own / "no-model")),
    )
    client, _ = anew()
    view = ended(client, client.post("/api/sae/one:bp:0/read", json={"text": "a"}))
    assert view["state"] == "failed"
    assert "no-model" in view["error"]
    assert str(own) not in view["error"]
    assert "\n" not in view["error"]


# Comparing.


def test_comparing_is_the_librarys_with_links(client: TestClient):
    saes = ["one:bp:0", "one:topk:0", f"{HOSTILE}:bp:0"]
    found = result(client, client.post("/api/compare", json={"saes": saes}))
    assert [entry["name"] for entry in found["entries"]] == saes
    assert len(found["pairs"]) == 3
    from hsae.compare import CompareConfig
    from hsae.compare.report import prepare

    report = prepare(CompareConfig(runs=("one:bp:0", "one:topk:0"), tokens=16_384)).do(lambda steps: None)
    (pair,) = report.pairs
    twin = pair.cosine.alike[0]
    sides = (("bp", twin.a), ("topk", twin.b))
    first, second = (f'<a href="/sae/one:{side}:0#/latent/{latent}">{latent}</a>' for side, latent in sides)
    assert f"{first} ↔ {second}" in found["pairs"][0]
    assert "<script" not in "".join(found["pairs"])
    assert found["entries"][0]["figures"]["l0"] == report.entries[0].figures.l0
    # The same SAE under two names: every latent that fires is its own twin.
    assert re.search(r'href="/sae/%3Cscript%3Ealert%281%29:bp:0#/latent/\d+"', found["pairs"][1])


def test_comparing_refuses_what_cannot_be_compared(client: TestClient):
    for saes, status in ((["one:bp:0"], 400), (["one:bp:0", "one:bp:0"], 400), ([], 400), ("one:bp:0", 400)):
        assert client.post("/api/compare", json={"saes": saes}).status_code == status
    assert client.post("/api/compare", json={"saes": ["one:bp:0", "nope:bp:0"]}).status_code == 404
    assert client.post("/api/compare", json={"saes": ["one:bp:0", "gone:bp:0"]}).status_code == 409
    many = [f"one:bp:0@{store}" for store in ("stories", "other")] + ["one:topk:0", "one:bp:0", f"{HOSTILE}:bp:0"]
    assert client.post("/api/compare", json={"saes": many}).status_code == 400


# Limits.


@pytest.mark.parametrize(
    ("path", "table", "status"),
    [
        ("read", {}, 400),
        ("read", {"text": 3}, 400),
        ("read", {"text": ""}, 400),
        ("read", {"text": "x" * (asked.TEXT + 1)}, 413),
        ("read", {"text": "a\ud800"}, 400),
        ("steer", {"prompt": "a"}, 400),
        ("steer", {"latents": [], "prompt": "a"}, 400),
        ("steer", {"latents": [LATENTS], "prompt": "a"}, 400),
        ("steer", {"latents": [-1], "prompt": "a"}, 400),
        ("steer", {"latents": [True], "prompt": "a"}, 400),
        ("steer", {"latents": [1.5], "prompt": "a"}, 400),
        ("steer", {"latents": list(range(17)), "prompt": "a"}, 400),
        ("steer", {"latents": [1], "prompt": ""}, 400),
        ("steer", {"latents": [1], "prompt": "a", "tokens": asked.WRITTEN + 1}, 400),
        ("steer", {"latents": [1], "prompt": "a", "tokens": 0}, 400),
        ("steer", {"latents": [1], "prompt": "a", "tokens": 1.5}, 400),
        ("steer", {"latents": [1], "prompt": "a", "tokens": 10**400}, 400),
        ("steer", {"latents": [1], "prompt": "a", "strength": "1"}, 400),
        ("steer", {"latents": [1], "prompt": "a", "strength": 1e9}, 400),
        ("steer", {"latents": [1], "prompt": "a", "strength": float("nan")}, 400),
        ("steer", {"latents": [1], "prompt": "a", "unit": ["max"]}, 400),
        ("steer", {"latents": [1], "prompt": "a", "unit": "furlong"}, 400),
        ("steer", {"latents": [1], "prompt": "a", "clamp": 1}, 400),
        ("steer", {"latents": [1], "prompt": "a", "temperature": -1}, 400),
        ("steer", {"latents": [1], "prompt": "a", "seed": -1}, 400),
        ("read", {"text": "a", "more": "x" * asked.BODY}, 413),
    ],
)
def test_what_is_asked_for_is_held_to_its_limits(client: TestClient, path: str, table: dict[str, Any], status: int):
    content = json.dumps(table).encode()
    answer = client.post(f"/api/sae/one:bp:0/{path}", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    line_of(answer)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe", b"[" * 100_000])
def test_a_body_that_is_no_object_is_refused(client: TestClient, content: bytes):
    answer = client.post("/api/sae/one:bp:0/read", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    line_of(answer)


def test_a_form_is_no_request(client: TestClient):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        answer = client.post("/api/sae/one:bp:0/read", content=b'{"text": "a"}', headers={"content-type": kind})
        assert answer.status_code == 400, kind


def test_too_much_work_is_refused_and_other_requests_are_not(client: TestClient, api: Api):
    let, begun = threading.Event(), threading.Event()
    jobs = [api._model.submit("holding", lambda job: [begun.set(), let.wait(10)])]
    assert begun.wait(5)
    jobs += [api._model.submit("waiting", lambda job: None) for _ in range(WAITING)]
    answer = client.post("/api/sae/one:bp:0/read", json={"text": "a"})
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    line_of(answer)
    assert client.get("/api/runs").status_code == 200
    assert client.get(f"/api/jobs/{jobs[1].number}").json()["state"] == "waiting"
    client.delete(f"/api/jobs/{jobs[1].number}")
    assert jobs[1].state == "cancelled"
    assert client.post("/api/sae/one:bp:0/read", json={"text": "a"}).status_code == 202
    let.set()
    end = time.monotonic() + 20
    while client.get("/api/jobs").json()["jobs"]:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_fault_of_ours_says_nothing_of_the_machine(made: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HSAE_CACHE", str(made))
    api = Api("cpu", trust_remote_code=False)
    client = TestClient(make_app(api, Gate()), base_url="http://localhost", raise_server_exceptions=False)

    def broken(*args: Any) -> Any:
        raise RuntimeError("secret of the machine")

    monkeypatch.setattr(api.shelf, "subject", broken)
    for path in ("/api/sae/one:bp:0", "/sae/one:bp:0"):
        answer = client.get(path)
        assert answer.status_code == 500
        assert "secret" not in answer.text
        assert "Traceback" not in answer.text
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


def test_methods_that_are_not_meant(client: TestClient):
    assert client.get("/api/compare").status_code == 405
    assert client.post("/api/runs", json={}).status_code == 405
    assert client.put("/api/jobs/1", json={}).status_code == 405


# Jobs.


def test_a_lane_does_one_job_after_the_other():
    lane, order, let = Lane("test", 5), [], threading.Event()
    first = lane.submit("first", lambda job: ["one", let.wait(5), order.append(1)][0])
    second = lane.submit("second", lambda job: order.append(2))
    assert second.state == "waiting"
    let.set()
    assert until(lambda: second.ended)
    assert order == [1, 2]
    assert json.loads(first.document())["result"] == "one"


def test_a_job_that_fails_leaves_the_lane_to_the_next(capsys: pytest.CaptureFixture[str]):
    lane = Lane("test", 5)

    def user_error(job: Job) -> None:
        raise UserError("a line")

    def fault(job: Job) -> None:
        raise SystemExit("secret")

    jobs = [lane.submit("a", user_error), lane.submit("b", fault), lane.submit("c", lambda job: {"right": 1})]
    assert until(lambda: jobs[2].ended)
    views = [json.loads(job.document()) for job in jobs]
    assert [view["state"] for view in views] == ["failed", "failed", "done"]
    assert views[0]["error"] == "a line"
    assert "secret" not in views[1]["error"]
    assert "secret" in capsys.readouterr().err


def test_cancelled_jobs_end_where_they_look_up_and_never_begin_where_they_wait():
    lane, begun, steps = Lane("test", 5), threading.Event(), []

    def work(job: Job) -> None:
        job.begin("stepping", 1000)
        while True:
            begun.set()
            job.advance()
            steps.append(1)
            time.sleep(0.001)

    running, waiting = lane.submit("a", work), lane.submit("b", lambda job: steps.append("never"))
    assert begun.wait(5)
    waiting.cancel()
    running.cancel()
    assert json.loads(running.document())["state"] == "cancelled"
    assert until(lambda: running.ended)
    after = lane.submit("c", lambda job: 3)
    assert until(lambda: after.ended)
    assert "never" not in steps
    assert (running.state, waiting.state, after.state) == ("cancelled", "cancelled", "done")


def test_a_lane_keeps_few_results_and_one_job_for_a_key(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jobs_, "KEPT", 8)
    lane = Lane("test", 2)
    jobs = [run_one(lane, i) for i in range(24)]
    assert lane.find(jobs[0].number) is None
    assert lane.find(jobs[-1].number) is jobs[-1]
    assert len(lane.jobs) <= 9
    let = threading.Event()
    held = lane.submit("held", lambda job: let.wait(5), key="same")
    assert lane.submit("again", lambda job: None, key="same") is held
    assert lane.known("same") is held
    lane.submit("other", lambda job: None, key="other")
    lane.submit("third", lambda job: None)
    with pytest.raises(Busy):
        lane.submit("too many", lambda job: None)
    let.set()
    assert until(lambda: held.ended)
    assert lane.known("same") is None


def run_one(lane: Lane, value: int) -> Job:
    job = lane.submit("one", lambda job: value)
    assert until(lambda: job.ended)
    return job


def test_closing_does_not_wait_for_ever():
    lane, let = Lane("test", 2), threading.Event()
    deaf = lane.submit("deaf", lambda job: let.wait(10))
    assert until(lambda: deaf.state == "running")
    begun = time.monotonic()
    assert lane.close(0.1) is False
    assert time.monotonic() - begun < 2
    let.set()


def test_who_asks_for_another_thing_does_not_wait_and_what_fails_is_made_again():
    kept, let, begun = Kept[str](5), threading.Event(), threading.Event()
    slow = threading.Thread(target=lambda: kept.get("slow", lambda: [begun.set(), let.wait(5), "slow"][2]))
    slow.start()
    assert begun.wait(5)
    assert kept.get("quick", lambda: "quick") == "quick"
    let.set()
    slow.join()
    assert kept.get("slow", lambda: "again") == "slow"
    with pytest.raises(LookupError):
        kept.get("none", lambda: {}["none"])
    assert kept.get("none", lambda: "now") == "now"
    # What cannot be made leaves nothing behind, whatever names are tried.
    for name in range(100):
        with pytest.raises(ZeroDivisionError):
            kept.get(name, lambda: str(1 // 0))
    assert set(kept._places) == {"slow", "quick", "none"}


def test_many_who_ask_at_once_have_it_made_once():
    kept, made, start = Kept[int](5), [], threading.Barrier(8)

    def ask() -> None:
        start.wait(5)
        kept.get("one", lambda: [time.sleep(0.05), made.append(1), 3][2])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]


def test_things_are_kept_by_their_weight():
    kept, made = Kept[str](10, len), []

    def make(text: str) -> str:
        return kept.get(text[0], lambda: made.append(text) or text)

    for text in ("aaaa", "bbbb", "aaaa", "cccc", "aaaa", "bbbb", "dddddddddddd", "dddddddddddd", "a"):
        make(text)
    # b went for c; all went for d, which alone weighs too much, and is kept until another comes.
    assert made == ["aaaa", "bbbb", "cccc", "bbbb", "dddddddddddd", "a"]


def test_kept_things_are_few_and_made_once():
    kept, made = Kept[int](2), []

    def make(value: int) -> int:
        return kept.get(value, lambda: made.append(value) or value)

    assert [make(value) for value in (1, 2, 1, 3, 1, 2)] == [1, 2, 1, 3, 1, 2]
    assert made == [1, 2, 3, 2]


@pytest.mark.parametrize(
    "text", ["a:b:0", "a:b:c:12", "a:b:0@store", "a:b:0@store@blocks.4.hook", "a:b:0@@blocks.4.hook"]
)
def test_names_are_read_as_they_are_written(text: str):
    assert str(Name.read(text)) == text
