"""A cache to serve, of runs and stores whole and not; a server on it in a process of its own; and ways to ask one."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from damage import edit
from starlette.testclient import TestClient

HOSTILE = "<script>alert(1)"
"""the name of a run"""
CONTEXT, LATENTS = 64, 96


def make_cache(cache: Path) -> None:
    """Fill a cache folder.

    Stores: `stories`; `other`, the same said to be of another model. Runs on the first: `one`, with setups bp and topk;
    `HOSTILE`, the same; `gone`, whose store is nowhere; `torn`, whose result is cut; `begun`, which never ended.
    """
    from rich.console import Console

    from hsae.harvesting import HarvestConfig, harvest
    from hsae.trainconfig import TrainConfig
    from hsae.training import train

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HSAE_CACHE", str(cache))
        wanted = HarvestConfig(
            model="bundled", data=("bundled",), context=CONTEXT, tokens=300 * CONTEXT, name="stories"
        )
        harvest(wanted, Console(quiet=True))
        topk = {"encoder": "backprop", "decoder": "backprop", "sae": {"kind": "topk", "k": 4}}
        table = {"store": "stories", "name": "one", "setups": ["bp", "topk"], "setup": {"topk": topk}}
        table |= {"latents": LATENTS, "batch_tokens": 512, "epochs": 2, "held_out": 1024, "baselines": False}
        train(TrainConfig.from_table(table | {"normalise": {"mode": "variance"}}, "test"))
    runs, stores = cache / "runs", cache / "activations"
    shutil.copytree(stores / "stories", stores / "other")
    edit(stores / "other" / "manifest.json", lambda manifest: manifest["model"].update(fingerprint="0123456789abcdef"))
    for name in (HOSTILE, "gone", "torn", "begun"):
        shutil.copytree(runs / "one", runs / name)
    edit(runs / "gone" / "run.json", lambda result: result.update(store="nowhere"))
    whole = (runs / "torn" / "run.json").read_text()
    (runs / "torn" / "run.json").write_text(whole[: len(whole) // 2])
    (runs / "begun" / "run.json").unlink()


@contextmanager
def serving(cache: Path, *flags: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`hsae serve` on a free port: the address that it prints, and its process; it is stopped at the end."""
    command = [sys.executable, "-m", "hsae", "serve", "--port", "0", *flags]
    environment = {**os.environ, "HSAE_CACHE": str(cache)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, line + (process.stdout.read() if process.poll() is not None else "")
        yield found[0].rstrip("/"), process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(5)
        finally:
            process.kill()
            process.stdout.close()


def copied(factory: pytest.TempPathFactory, target: Path) -> Path:
    """A copy, without indexes, of a cache that is made once for all tests."""
    made = factory.getbasetemp() / "served"
    if not (made / "runs" / "begun").exists():
        shutil.rmtree(made, ignore_errors=True)
        make_cache(made)
    shutil.copytree(made, target, ignore=shutil.ignore_patterns("evidence"))
    return target


def ended(client: TestClient, answer: Any, seconds: float = 60) -> dict[str, Any]:
    """A job's last words."""
    assert answer.status_code == 202, answer.text
    number, end = answer.json()["job"], time.monotonic() + seconds
    while (view := client.get(f"/api/jobs/{number}").json())["state"] in ("waiting", "running"):
        assert time.monotonic() < end, view
        time.sleep(0.01)
    return view


def result(client: TestClient, answer: Any) -> Any:
    view = ended(client, answer)
    assert view["state"] == "done", view
    return view["result"]


def indexed(client: TestClient, name: str) -> None:
    if not client.get(f"/api/sae/{name}").json()["stands"]:
        result(client, client.post(f"/api/sae/{name}/index", json={}))


def line_of(answer: Any) -> str:
    """The one line of a refusal."""
    assert set(answer.json()) == {"error"}, answer.text
    line = answer.json()["error"]
    assert line
    assert "\n" not in line
    assert "Traceback" not in line
    return line


def until(true: Callable[[], bool], seconds: float = 5) -> bool:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.002)
    return True
