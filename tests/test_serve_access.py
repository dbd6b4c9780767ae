"""Who may ask `hsae serve`, what goes with every answer, how it starts, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from served import copied, indexed, line_of, serving, until
from starlette.testclient import TestClient

import hsae
from hsae.inspect.page.documents import BLOCK
from hsae.serve import ServeConfig
from hsae.serve.api import Api
from hsae.serve.app import make_app
from hsae.serve.guard import Gate, names_of_this_machine

TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(tmp_path_factory, tmp_path_factory.mktemp("access") / "cache")


@pytest.fixture(scope="module")
def api() -> Api:
    return Api("cpu", trust_remote_code=False)


@pytest.fixture
def client(made: Path, api: Api, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    monkeypatch.setenv("HSAE_CACHE", str(made))
    return TestClient(make_app(api, Gate()), base_url="http://localhost")


def test_only_this_machines_names_are_answered(client: TestClient):
    for host in ("localhost", "localhost:8484", "127.0.0.1", "127.0.0.1:1", "[::1]:8484", "LOCALHOST"):
        assert client.get("/api/jobs", headers={"host": host}).status_code == 200, host
    for host in (
        "evil.example",
        "localhost.evil.example",
        "evil.example:8484",
        "",
        "127.0.0.1.evil.example",
        "[",
        "a b",
    ):
        answer = client.get("/api/jobs", headers={"host": host})
        assert answer.status_code == 400, host
        line_of(answer)


def test_another_sites_page_can_change_nothing(client: TestClient):
    for headers in (
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:9999"},
        {"origin": "http://127.0.0.1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ):
        for answer in (
            client.post("/api/compare", json={"saes": []}, headers=headers),
            client.delete("/api/jobs/1", headers=headers),
        ):
            assert answer.status_code == 403, headers
            line_of(answer)
    for headers in ({"origin": "http://localhost"}, {"sec-fetch-site": "same-origin"}, {}):
        assert client.post("/api/compare", json={"saes": []}, headers=headers).status_code == 400, headers


@pytest.fixture
def guarded(made: Path, api: Api, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    monkeypatch.setenv("HSAE_CACHE", str(made))
    gate = Gate(names_of_this_machine("gpu7.lab"), TOKEN, "hsae-1")
    return TestClient(make_app(api, gate), base_url="http://gpu7.lab", follow_redirects=False)


def test_without_the_token_nothing_is_answered(guarded: TestClient):
    for path in ("/", "/api/runs", "/static/page.css", "/nope", "/?token=", "/?token=wrong", f"/?token={TOKEN}x"):
        answer = guarded.get(path)
        assert answer.status_code == 401, path
        assert TOKEN not in answer.text
        assert "set-cookie" not in answer.headers
    for value in (f"Bearer {TOKEN}x", "Bearer ", f"Basic {TOKEN}", "Bearer \xff"):
        assert guarded.get("/api/runs", headers=[(b"authorization", value.encode("latin-1"))]).status_code == 401
    for cookie in (TOKEN, "", "x"):
        assert guarded.get("/api/runs", headers={"cookie": f"hsae-1={cookie}"}).status_code == 401
    assert guarded.post("/api/compare?token=" + TOKEN, json={"saes": []}).status_code == 401
    assert (
        guarded.get("/api/runs", headers={"host": "evil.example", "authorization": f"Bearer {TOKEN}"}).status_code
        == 400
    )


def test_the_token_opens_by_header_and_by_cookie_and_leaves_the_address(guarded: TestClient):
    assert guarded.get("/api/runs", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    answer = guarded.get(f"/run/one?on=other&token={TOKEN}")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/run/one?on=other"
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert TOKEN not in cookie
    assert guarded.get("/api/runs").status_code == 200
    guarded.cookies.clear()
    assert guarded.get("/api/runs").status_code == 401
    # Another server's pass is none here.
    pass_ = Gate(token=TOKEN).ticket
    assert guarded.get("/api/runs", headers={"cookie": f"hsae-1={pass_}"}).status_code == 401


def test_a_redirect_leads_nowhere_else(guarded: TestClient):
    for path in ("//evil.example/", "/%2f/evil.example", "/\\evil.example"):
        answer = guarded.get(f"http://gpu7.lab{path}?token={TOKEN}")
        guarded.cookies.clear()
        assert answer.status_code == 303
        location = answer.headers["location"]
        assert location.startswith("/")
        assert not location.startswith(("//", "/\\"))


def test_every_answer_has_the_headers(client: TestClient, guarded: TestClient):
    answers = [client.get(path) for path in ("/", "/api/runs", "/static/serve.css", "/nope", "/api/nope", "/run/one")]
    answers += [guarded.get("/"), client.get("/", headers={"host": "evil.example"})]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in answer.headers


def test_the_inspectors_page_is_held_to_its_own_scripts(client: TestClient):
    indexed(client, "one:bp:0")
    page = client.get("/sae/one:bp:0")
    policy = page.headers["content-security-policy"]
    assert re.search(r"script-src '?sha256-", policy)
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert '{"base":"/api/sae/one:bp:0"}' in page.text


def test_no_page_has_inline_handlers_or_asks_elsewhere():
    static = Path(hsae.__file__).parent / "serve" / "static"
    for path in static.iterdir():
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"https?://(?!www\.w3\.org/)", text), path.name
        assert not re.search(r"<[^>]+\son\w+=", text), path.name


def test_static_files_are_asked_for_once(client: TestClient):
    first = client.get("/static/serve.css")
    again = client.get("/static/serve.css", headers={"if-none-match": first.headers["etag"]})
    assert (first.status_code, again.status_code, again.text) == (200, 304, "")


# The settings.


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ({"port": 70000}, "port"),
        ({"port": -1}, "port"),
        ({"host": ""}, "host"),
        ({"token": "short"}, "token"),
        ({"token": "twelve chars with spaces"}, "token"),
        ({"token": "<twelve-characters>"}, "token"),
    ],
)
def test_settings_that_cannot_be(table: dict[str, Any], key: str):
    with pytest.raises(ValueError, match=f"^{key} must be") as error:
        ServeConfig(**table)
    if key == "token":
        assert table["token"] not in str(error.value)


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.5", False),
    ],
)
def test_what_is_this_machine_alone(host: str, local: bool):
    assert ServeConfig(host=host).local is local


# The process.


def get(url: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_it_reads_indexes_without_pytorch_and_ends_at_once(client: TestClient, made: Path):
    indexed(client, "one:bp:0")
    with serving(made) as (url, process):
        for path in ("/", "/api/runs", "/api/runs/one", "/sae/one:bp:0", "/api/sae/one:bp:0/summary"):
            assert get(url + path)[0] == 200, path
        status, text = get(f"{url}/api/sae/one:bp:0/block/0")
        assert status == 200
        assert len(json.loads(text)["latents"]) == BLOCK
        if sys.platform == "linux":
            assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text()
        process.send_signal(signal.SIGINT)
        begun = time.monotonic()
        assert process.wait(5) == 0
        assert time.monotonic() - begun < 3
        assert process.stdout is not None
        rest = process.stdout.read()
        assert "stopped" in rest
        assert "Traceback" not in rest


def test_ctrl_c_ends_a_job_with_it(client: TestClient, made: Path):
    indexed(client, "one:bp:0")
    with serving(made) as (url, process):
        body = json.dumps({"latents": [1], "prompt": "a", "tokens": 256, "unit": "activation"}).encode()
        asked = urllib.request.Request(
            f"{url}/api/sae/one:bp:0/steer", data=body, headers={"content-type": "application/json"}
        )
        number = json.loads(urllib.request.urlopen(asked, timeout=10).read())["job"]
        assert until(lambda: bool(json.loads(get(f"{url}/api/jobs/{number}")[1])["partial"]), 30)
        process.send_signal(signal.SIGINT)
        begun = time.monotonic()
        assert process.wait(10) == 0
        assert time.monotonic() - begun < 4
        assert process.stdout is not None
        assert "Traceback" not in process.stdout.read()


def test_a_token_is_made_where_others_can_reach_it_and_is_in_no_log(made: Path):
    with serving(made, "--host", "0.0.0.0") as (url, process):
        token = url.partition("?token=")[2]
        assert len(token) >= 24
        base = f"http://127.0.0.1:{urlsplit(url).port}"
        assert get(f"{base}/api/runs")[0] == 401
        assert get(f"{base}/api/runs", Authorization=f"Bearer {token}")[0] == 200
        assert get(f"{base}/api/runs?token={token}&x=[")[0] in (200, 401)
        assert get(f"{base}/api/runs", Host="evil.example")[0] == 400
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 0
        assert process.stdout is not None
        assert token not in process.stdout.read()


def test_a_port_in_use_is_one_line(made: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_cli(made, "--port", str(port))
    assert done.returncode == 2
    assert done.stderr == f"hsae: port {port} is in use; --port 0 takes a free one\n"
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--host", "203.0.113.9"], "none of this machine's addresses"),
        (["--host", "no such host"], "no such address"),
        (["--token", "short"], "token"),
        (["--port", "99999"], "port"),
    ],
)
def test_where_it_cannot_listen_it_says_so_in_one_line(made: Path, flags: list[str], line: str):
    done = run_cli(made, *flags)
    assert done.returncode == 2
    assert line in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def run_cli(cache: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hsae", "serve", *flags]
    return subprocess.run(
        command, env={**os.environ, "HSAE_CACHE": str(cache)}, capture_output=True, text=True, timeout=30, check=False
    )
