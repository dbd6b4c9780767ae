"""`hsae serve` among 200 clients at once: every answer is right, and nothing is left behind. Nothing about speed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from served import copied, indexed, serving, until
from starlette.testclient import TestClient

from hsae.serve.api import Api
from hsae.serve.app import make_app
from hsae.serve.guard import Gate

CROWD = Path(__file__).parents[1] / "benchmarks" / "crowd.py"
SAE = "one:bp:0"


@pytest.fixture
def made(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = copied(tmp_path_factory, tmp_path / "cache")
    monkeypatch.setenv("HSAE_CACHE", str(cache))
    client = TestClient(make_app(Api("cpu", trust_remote_code=False), Gate()), base_url="http://localhost")
    indexed(client, SAE)
    return cache


def crowd(url: str, clients: int, seconds: float) -> dict[str, Any]:
    flags = ["--clients", str(clients), "--seconds", str(seconds)]
    done = subprocess.run(
        [sys.executable, str(CROWD), url, SAE, *flags], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["kinds"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory and files are read from /proc")
@pytest.mark.fault("Server", "200 clients at once", "processes on loopback, real sockets", "hsae serve")
def test_200_clients_get_right_answers_and_leave_nothing_behind(made: Path):
    with serving(made, "--device", "cpu") as (url, process):

        def megabytes(what: str) -> int:
            found = re.search(rf"{what}:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
            assert found
            return int(found[1]) // 1024

        def files() -> int:
            return len(os.listdir(f"/proc/{process.pid}/fd"))

        crowd(url, 5, 1.0)  # Loads the language model, and starts all threads.
        memory, open_files = megabytes("VmRSS"), files()
        kinds = crowd(url, 200, 2.0)
        assert {kind: of["first_wrong"] for kind, of in kinds.items() if of["wrong"]} == {}
        assert all(of["answers"] for of in kinds.values()), kinds
        assert until(lambda: files() <= open_files, 10)
        assert megabytes("VmHWM") < memory + 250
        assert process.poll() is None
        process.send_signal(2)
        assert process.wait(10) == 0
        assert process.stdout is not None
        assert "Traceback" not in process.stdout.read()
