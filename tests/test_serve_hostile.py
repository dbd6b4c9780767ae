"""`hsae serve` and those who mean it no good."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest
from damage import edit
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from served import copied, indexed, line_of, until
from starlette.testclient import TestClient

import hsae
from hsae.serve import guard, line, turns
from hsae.serve.api import Api
from hsae.serve.app import make_app
from hsae.serve.catalogue import Catalogue
from hsae.serve.guard import ADDRESS, HEAD, Gate
from hsae.serve.jobs import LEASE, Job, Lane
from hsae.serve.listen import make_server
from hsae.serve.told import told

CANARY = "canary-4711"
"""in every file that nobody may read, and in no name"""
Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache beside files that are none of its business, some of them linked to from within it."""
    home = tmp_path_factory.mktemp("hostile")
    cache, outside = copied(tmp_path_factory, home / "cache"), home / "outside"
    runs, stores = cache / "runs", cache / "activations"
    shutil.copytree(runs / "one", outside / "run")
    shutil.copytree(stores / "stories", outside / "store")
    for folder in (outside, outside / "run", outside / "store", cache):
        (folder / "secret.json").write_text(json.dumps({"setup": CANARY}))
    for path in (outside / "run" / "run.json", outside / "store" / "manifest.json"):
        edit(path, lambda table: table["model"].update(name=CANARY))
    (runs / "linked").symlink_to(outside / "run")
    (stores / "linked").symlink_to(outside / "store")
    for name, file in (("part", "run.json"), ("table", "config.toml"), ("weights", "sae.safetensors")):
        shutil.copytree(runs / "one", runs / name)
        (runs / name / file).unlink()
        (runs / name / file).symlink_to(outside / "run" / file)
    shutil.copytree(runs / "one", runs / "away")
    edit(runs / "away" / "run.json", lambda result: result.update(store=str(outside / "store")))
    return cache


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    api = Api("cpu", trust_remote_code=False)
    yield api
    api.close(5.0)


@pytest.fixture
def cache(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HSAE_CACHE", str(made))
    return made


@pytest.fixture
def client(cache: Path, api: Api) -> TestClient:
    return TestClient(make_app(api, Gate()), base_url="http://localhost")


# No request reads a file outside.

OPENED: list[str] = []
"""every file that is opened while `watching` is set"""
watching = threading.Event()


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if watching.is_set() and event == "open" and isinstance(args[0], str | bytes):
        OPENED.append(args[0] if isinstance(args[0], str) else args[0].decode())


sys.addaudithook(_hook)


@contextmanager
def opened() -> Iterator[list[str]]:
    OPENED.clear()
    watching.set()
    try:
        yield OPENED
    finally:
        watching.clear()


def ask(app: Any, method: str, target: str, body: bytes = b"") -> Answer:
    """A request as it comes over the line: nothing in its address is put in order first."""
    path, _, query = target.partition("?")
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "root_path": ""}
    scope |= {"method": method, "headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80)}
    scope |= {"path": unquote(path), "raw_path": path.encode(), "query_string": query.encode()}
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    head = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], head, b"".join(message.get("body", b"") for message in sent[1:])


UP = ("..", ".", "%2e%2e", "%2E%2e", "..%2f", "%2f", "%5c", "..%5c", "%00", "%252e%252e", "%c0%ae", "", "~")
WORDS = ("api", "runs", "sae", "run", "static", "jobs", "compare", "one", "linked", "part", "away", "outside", "store")
WORDS += ("secret.json", "run.json", "stories", "summary", "block", "0", "index", "read", "one:bp:0", "linked:bp:0")
WORDS += ("part:bp:0", "away:bp:0", "weights:bp:0", "one:bp:0@linked", "one:bp:0@..%2f..%2foutside%2fstore")
SECRETS = ("outside/run", "outside/store", "outside/secret.json", "cache/secret.json", "outside")


@st.composite
def targets(draw: st.DrawFn) -> tuple[str, str]:
    """(an address with HERE in the place of the folder that holds the cache, text for a body)."""
    secret = st.sampled_from(SECRETS).map(lambda name: quote(f"HERE/{name}", safe=draw(st.sampled_from(("", "/")))))
    piece = st.one_of(st.sampled_from(UP), st.sampled_from(WORDS), secret)
    path = "/".join(draw(st.lists(piece, min_size=1, max_size=7)))
    start = draw(st.sampled_from(("/", "/api/runs/", "/api/sae/", "/static/", "/run/", "/sae/", "/api/sae/one:bp:0@")))
    query = draw(st.sampled_from(("", "?on=HERE/outside/store", "?on=linked", "?on=..%2f..%2foutside%2fstore&hook=a")))
    return start + path + query, draw(piece)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(targets(), st.sampled_from(("GET", "GET", "GET", "HEAD", "POST", "DELETE")))
@example(("/api/runs/linked", ""), "GET")
@example(("/api/runs/part", ""), "GET")
@example(("/api/runs/away", ""), "GET")
@example(("/api/runs/one?on=linked", ""), "GET")
@example(("/api/sae/away:bp:0", ""), "GET")
@example(("/api/sae/weights:bp:0/read", "one"), "POST")
@example(("/api/sae/one:bp:0@linked", ""), "GET")
@example(("/static/..%2f..%2f..%2f..%2foutside%2fsecret.json", ""), "GET")
@example(("/static/HERE/outside/secret.json", ""), "GET")
@example(("/api/runs/one%00", ""), "GET")
@example(("/api/runs/..%2f", ""), "GET")
@example(("/api/compare", "away:bp:0"), "POST")
@pytest.mark.fault(
    "Server",
    "Addresses that lead out of the cache",
    ".., absolute, encoded, in every place of every address",
    "hsae serve",
)
def test_no_address_reads_a_file_outside_the_cache(cache: Path, api: Api, target: tuple[str, str], method: str):
    home = str(cache.parent)
    path = target[0].replace("HERE", home)
    names = [unquote(target[1]).replace("HERE", home), "one:bp:0"]
    body = json.dumps({"text": "a", "saes": names}).encode() if method == "POST" else b""
    with opened() as files:
        status, headers, answer = ask(make_app(api, Gate()), method, path, body)
    outside = [file for file in files if file.startswith(home) and not file.startswith(f"{cache}/")]
    assert not outside
    assert not [file for file in files if "secret" in file]
    assert status < 500
    assert CANARY.encode() not in answer
    assert b"Traceback" not in answer
    assert headers["x-content-type-options"] == "nosniff"
    if headers["content-type"] == "application/json" and status >= 400:
        # Of a path only what was sent comes back.
        assert home not in json.loads(answer)["error"].replace(unquote(path), "").replace(names[0], "")


def test_the_check_above_sees_what_is_opened(cache: Path):
    with opened() as files:
        (cache.parent / "outside" / "secret.json").read_text()
        assert any("secret" in file for file in files)


@pytest.mark.fault("Server", "Links out of the cache", "symlinks in it", "hsae serve")
def test_links_out_of_the_cache_are_not_followed_and_the_list_says_so(client: TestClient, cache: Path):
    found = client.get("/api/runs").json()
    assert CANARY not in json.dumps(found)
    runs = {run["name"]: run for run in found["runs"]}
    for name, file in (("linked", "linked"), ("part", "run.json"), ("table", "config.toml"), ("weights", "sae.safe")):
        assert runs[name]["standing"] == "damaged"
        assert f"runs/{name}" in runs[name]["note"]
        assert file in runs[name]["note"]
        assert "link" in runs[name]["note"]
        assert str(cache.parent) not in runs[name]["note"]
        answer = client.get(f"/api/sae/{name}:bp:0")
        assert answer.status_code == 409
        assert "link" in line_of(answer)
    assert "link" in {store["name"]: store["note"] for store in found["stores"]}["linked"]
    assert "link" in line_of(client.get("/api/sae/one:bp:0@linked"))


def test_a_store_elsewhere_is_not_opened_and_another_can_be(client: TestClient, cache: Path):
    listed = {run["name"]: run for run in client.get("/api/runs").json()["runs"]}
    assert listed["away"]["store_there"] is False
    for path in ("/api/sae/away:bp:0", "/api/sae/away:bp:0/summary"):
        answer = client.get(path)
        assert answer.status_code == 409
        assert "outside the cache" in line_of(answer)
        assert str(cache.parent) not in answer.text
    assert client.get("/api/sae/away:bp:0@stories").status_code == 200


def test_links_that_stay_in_the_cache_are_followed(client: TestClient, cache: Path, tmp_path: Path):
    own = tmp_path / "cache"
    shutil.copytree(cache / "runs" / "one", own / "disk" / "one")
    shutil.copytree(cache / "activations", own / "activations", symlinks=True)
    # The whole of runs may lie elsewhere: then that is the cache.
    (own / "runs").symlink_to(own / "disk")
    (own / "disk" / "again").symlink_to(own / "disk" / "one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HSAE_CACHE", str(own))
        runs = {run["name"]: run["standing"] for run in client.get("/api/runs").json()["runs"]}
        assert runs == {"one": "whole", "again": "whole"}
        assert client.get("/api/sae/again:bp:0").json()["store"] == "stories"


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ("{root}/runs/torn/run.json: damaged", "runs/torn/run.json: damaged"),
        ("model /home/me/models/tiny: nothing there", "model …/tiny: nothing there"),
        ("run one and/or two; see https://a.b/c/d", "run one and/or two; see https://a.b/c/d"),
        ("cannot open '/etc/ssl/private/key': no", "cannot open '…/key': no"),
        ("org/model is not there", "org/model is not there"),
        ("ratio 3/4 of a/b/c", "ratio 3/4 of a/b/c"),
    ],
)
def test_error_lines_keep_this_machines_places_to_themselves(cache: Path, said: str, heard: str):
    assert told(said.format(root=cache)) == heard


# What is sent is held to its limits, and what cannot be read is refused.


def test_an_address_has_a_length(client: TestClient):
    assert client.get(f"/api/runs/{'a' * (ADDRESS - 10)}").status_code == 404
    for path in (f"/api/runs/{'a' * ADDRESS}", f"/api/runs?on={'a' * ADDRESS}", f"/api/jobs/{'9' * ADDRESS}"):
        answer = client.get(path)
        assert answer.status_code == 414
        line_of(answer)
    # A number of as many digits as fit.
    for path in ("/api/jobs/", "/api/sae/one:bp:0/block/"):
        assert client.get(path + "9" * (ADDRESS - len(path))).status_code == 404


@pytest.mark.parametrize("origin", ["http://[", "http://localhost.evil.example", "javascript:", "file://localhost", ""])
@pytest.mark.fault("Server", "A foreign Origin", "headers", "hsae serve")
def test_an_origin_that_is_none_is_a_foreign_one(client: TestClient, origin: str):
    answer = client.post("/api/compare", json={"saes": []}, headers={"origin": origin})
    assert answer.status_code == 403
    line_of(answer)


# Connections.


@pytest.fixture
def port(cache: Path, api: Api, caplog: pytest.LogCaptureFixture) -> Iterator[tuple[int, Any]]:
    """A server in a thread of this process: its port, and what it knows of its connections. `caplog` hears its log."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        server = make_server(api, Gate())
        server.config.timeout_keep_alive = 1
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        assert until(lambda: server.started)
        logging.getLogger("uvicorn.error").addHandler(caplog.handler)
        yield listening.getsockname()[1], server.server_state
        logging.getLogger("uvicorn.error").removeHandler(caplog.handler)
        server.should_exit = True
        thread.join(5)
        assert not thread.is_alive()


@contextmanager
def talking(port: int, said: bytes = b"", buffer: int = 0) -> Iterator[socket.socket]:
    with socket.socket() as client:
        if buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        client.settimeout(10)
        client.connect(("127.0.0.1", port))
        client.sendall(said)
        yield client


def heard(client: socket.socket) -> bytes:
    """All that comes until the server closes."""
    parts = []
    try:
        while part := client.recv(65536):
            parts.append(part)
    except ConnectionError:
        pass
    return b"".join(parts)


def answered(client: socket.socket) -> bool:
    """Whether an answer to `JOBS` comes."""
    said = b""
    while not said.endswith(b'{"jobs": []}') and (part := client.recv(65536)):
        said += part
    return said.startswith(b"HTTP/1.1 200")


JOBS = b"GET /api/jobs HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /api/sae/one:bp:0/read HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
POST += b"Content-Length: 100\r\n\r\n"


@pytest.mark.parametrize("said", [b"", b"GET /api/jobs HT", JOBS, POST, POST + b'{"text"', JOBS + b"\r\n" + JOBS])
@pytest.mark.fault("Server", "A request that never ends", "sockets that fall silent", "hsae serve")
def test_a_request_that_does_not_arrive_is_not_waited_for(
    port: tuple[int, Any], said: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(line, "ARRIVING", 0.3)
    begun = time.monotonic()
    with talking(port[0], said) as client:
        heard(client)
    # The last of them answers one request, and then waits for the next as for any idle client.
    assert time.monotonic() - begun < 8
    assert until(lambda: not port[1].connections)
    assert not caplog.records


def dripped(client: socket.socket, byte: bytes) -> float:
    """Seconds for which the server took a byte now and then; 5 at most."""
    begun = time.monotonic()
    while (passed := time.monotonic() - begun) < 5:
        try:
            client.sendall(byte)
        except OSError:
            break
        time.sleep(0.05)
    return passed


@pytest.mark.fault("Server", "A byte now and then", "a slow client", "hsae serve")
def test_a_byte_now_and_then_wins_no_time(port: tuple[int, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(line, "ARRIVING", 0.4)
    with talking(port[0], JOBS) as client:
        assert dripped(client, b"X") < 2
    # After an answer as well, where the clock of idle connections would begin anew with every byte.
    with talking(port[0], JOBS + b"\r\n") as client:
        assert answered(client)
        assert dripped(client, b"G") < 2


def test_a_client_in_good_time_is_not_cut_off(port: tuple[int, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(line, "ARRIVING", 0.5)
    with talking(port[0]) as client:
        for _ in range(4):
            time.sleep(0.3)
            client.sendall(JOBS + b"\r\n")
            assert answered(client)


@pytest.mark.fault("Server", "Nobody reads the answer", "a client with a tiny buffer asks 40 times", "hsae serve")
def test_who_does_not_read_holds_little_and_not_for_long(
    port: tuple[int, Any], client: TestClient, monkeypatch: pytest.MonkeyPatch
):
    indexed(client, "one:bp:0")
    assert len(client.get("/sae/one:bp:0").content) > 80_000
    monkeypatch.setattr(guard, "PIECE", 8192)
    monkeypatch.setattr(line, "ANSWERING", 1.5)
    wish = b"GET /sae/one:bp:0 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with talking(port[0], wish * 40, buffer=4096):
        most, begun = 0, time.monotonic()
        assert until(lambda: bool(port[1].connections))
        while port[1].connections and time.monotonic() - begun < 10:
            held = [one.transport.get_write_buffer_size() for one in [*port[1].connections]]
            most = max([most, *held])
            time.sleep(0.005)
        assert 1 < time.monotonic() - begun < 8
    # What asyncio takes before it says that it is enough, and little more.
    assert 0 < most <= 64 * 1024 + 3 * 8192


@pytest.mark.fault("Server", "More clients than may", "sockets that stay open", "hsae serve")
def test_more_clients_than_may_are_told_to_come_again(port: tuple[int, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(line, "CLIENTS", 3)
    with talking(port[0]), talking(port[0]), talking(port[0]):
        assert until(lambda: len(port[1].connections) == 3)
        with talking(port[0]) as late:
            head, _, body = heard(late).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503")
            assert b"\r\nRetry-After: " in head
            assert f"Content-Length: {len(body)}\r\n".encode() in head
    assert until(lambda: not port[1].connections)
    with talking(port[0], JOBS + b"\r\n") as client:
        assert answered(client)


@pytest.mark.parametrize(
    "said",
    [
        b"\x00" * 100,
        b"GET\r\n\r\n",
        b"GET /api/jobs HTTP/1.1\r\n\r\n",  # no Host
        JOBS + b"Host: evil.example\r\n\r\n",  # two of them
        JOBS + b"X: " + b"x" * HEAD + b"\r\n\r\n",
        b"GET /" + b"a" * HEAD + b" HTTP/1.1\r\n\r\n",
        JOBS + b"Content-Length: " + b"9" * 400 + b"\r\n\r\n",
        JOBS + b"Content-Length: -1\r\n\r\n",
        JOBS + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nZ\r\n",
        b"GET http://evil.example/api/jobs HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"CONNECT evil.example:80 HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=range(12),
)
@pytest.mark.fault("Server", "What is no request", "raw bytes", "hsae serve")
def test_what_is_no_request_is_refused(
    port: tuple[int, Any], said: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(line, "ARRIVING", 0.3)
    with talking(port[0], said) as client:
        answer = heard(client)
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 404", b"HTTP/1.1 431")) or not answer
    assert b"Traceback" not in answer
    assert b"jobs" not in answer
    assert not caplog.records


@pytest.mark.fault("Server", "A client goes away", "a socket closed in the middle", "hsae serve")
def test_a_client_that_goes_away_in_the_middle_is_no_fault(port: tuple[int, Any], caplog: pytest.LogCaptureFixture):
    for said in (POST, POST + b'{"te', JOBS, b"GET /sae/one:bp:0 HTTP/1.1\r\nHost: localhost\r\n\r\n"):
        with talking(port[0], said):
            pass
    assert until(lambda: not port[1].connections and not port[1].tasks)
    assert not caplog.records


def test_a_fault_of_ours_is_heard_by_the_log(
    port: tuple[int, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(Catalogue, "runs", lambda of: 1 // 0)
    with talking(port[0], b"GET /api/runs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n") as client:
        heard(client)
    assert until(lambda: bool(caplog.records))


# Turns.


@pytest.mark.fault("Server", "More requests than may wait", "requests that are held", "hsae serve")
def test_more_requests_than_may_wait_are_told_to_come_again(
    port: tuple[int, Any], api: Api, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(turns, "QUEUE", 2)
    let, begun, real = threading.Event(), threading.Semaphore(0), Catalogue.run_folder

    def held(of: Catalogue, name: str) -> Path:
        begun.release()
        assert let.wait(10)
        return real(of, name)

    monkeypatch.setattr(Catalogue, "run_folder", held)
    wish = b"GET /api/runs/one HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    lines = []
    for i in range(turns.AT_ONCE + 2):
        one = socket.create_connection(("127.0.0.1", port[0]), 10)
        one.sendall(wish)
        lines.append(one)
        if i < turns.AT_ONCE:
            assert begun.acquire(timeout=5)
    assert until(lambda: api.turns._waiting == 2)
    with talking(port[0], wish) as late:
        answer = heard(late)
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"\r\nretry-after: " in answer
        assert b"nosniff" in answer
    let.set()
    for one in lines:
        assert heard(one).startswith(b"HTTP/1.1 200")
        one.close()


# Jobs.


def test_a_job_that_nobody_asks_about_ends_and_one_that_is_asked_about_goes_on():
    lane, steps = Lane("test", 5), {"left": 0, "watched": 0}

    def work(name: str) -> Any:
        def step(job: Job) -> None:
            job.begin("stepping", 1000)
            for _ in range(40):
                steps[name] += 1
                time.sleep(0.02)
                job.advance()

        return step

    left = lane.submit("left", work("left"), lease=0.2)
    waiting = lane.submit("waiting", work("left"), lease=0.2)
    assert until(lambda: left.ended)
    assert left.state == "cancelled"
    assert steps["left"] < 30
    assert until(lambda: waiting.ended)
    assert waiting.state == "cancelled"
    watched = lane.submit("watched", work("watched"), lease=0.2)
    while not watched.ended:
        assert lane.find(watched.number) is watched
        time.sleep(0.02)
    assert (watched.state, steps["watched"]) == ("done", 40)


def test_jobs_that_wait_for_nobody_take_no_place():
    lane, let = Lane("test", 1), threading.Event()
    lane.submit("held", lambda job: let.wait(5))
    assert until(lambda: lane.jobs[0].state == "running")
    left = lane.submit("left", lambda job: None, lease=0.05)
    time.sleep(0.1)
    after = lane.submit("after", lambda job: 3)
    assert left.state == "cancelled"
    let.set()
    assert until(lambda: after.state == "done")


def test_what_a_client_asks_for_ends_with_it_and_an_index_does_not(client: TestClient, api: Api):
    leases = {}
    for path, body in (("index", {}), ("read", {"text": "a"}), ("steer", {"latents": [1], "prompt": "a", "tokens": 1})):
        table = {**body, "unit": "activation"}
        number = client.post(f"/api/sae/one:topk:0/{path}", json=table).json()["job"]
        job = api._model.find(number) or api._long.find(number)
        assert job is not None
        leases[path] = job.lease
    assert leases == {"index": float("inf"), "read": LEASE, "steer": LEASE}
    assert until(lambda: not client.get("/api/jobs").json()["jobs"], 30)


def test_results_are_kept_by_their_size(monkeypatch: pytest.MonkeyPatch):
    from hsae.serve import jobs

    monkeypatch.setattr(jobs, "RESULTS", 10_000)
    lane, numbers = Lane("test", 5), []
    for _ in range(8):
        job = lane.submit("one", lambda job: "x" * 3000)
        assert until(lambda job=job: job.ended)
        numbers.append(job.number)
    there = [number for number in numbers if lane.find(number)]
    # The last three fit; the newest of all came after the last look.
    assert there == numbers[-4:]


def test_the_servers_own_files_are_all_there_is(client: TestClient):
    package = Path(hsae.__file__).parent
    assert (package / "serve" / "api.py").exists()
    for name in ("api.py", "page.html", "..%2fapi.py", "%2e%2e/api.py", "words.py"):
        assert client.get(f"/static/{name}").status_code == 404
