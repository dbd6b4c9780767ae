"""An object store on the loopback: moto's server, behind a proxy that writes down what is asked and makes faults.

Objects are read by s3:// (with the endpoint in the environment) and, as from any web server, by http://. A test module
takes the fixtures at the end as its own.
"""

from __future__ import annotations

import gc
import http.client
import importlib.util
import re
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import fsspec
import pytest

from hsae.store import place

needs_s3 = pytest.mark.skipif(
    not (importlib.util.find_spec("s3fs") and importlib.util.find_spec("moto")), reason="s3fs or moto is not installed"
)

BUCKET = "bucket"
ANYBODY = "AWS4-HMAC-SHA256 Credential=test/20200101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
MOTO = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass
class Fault:
    """Something that goes wrong with requests whose path matches, so many times.

    `stall`: half of the answer, then nothing until the store lets go; `hold`: no answer, and nothing is done.
    """

    path: str
    kind: Literal["status", "reset", "flip", "cut", "swell", "stall", "hold"]
    times: int = 1
    status: int = 503
    method: str = "GET"


class ObjectStore:
    """Both servers.

    Attributes:
        asked: (method, path) of all requests so far.
        faults: what is still to go wrong.
        seconds: how long every answer takes.
        busiest: the most requests that were answered at once.
    """

    def __init__(self, moto: tuple[str, int]) -> None:
        self.moto, self.asked, self.faults = moto, list[tuple[str, str]](), list[Fault]()
        self.let_go = threading.Event()
        self.seconds, self.busy, self.busiest = 0.0, 0, 0
        self.lock = threading.Lock()
        handler = type("Handler", (_Proxy,), {"store": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def gets(self, pattern: str) -> list[str]:
        """Paths of the GET requests that match."""
        return [path for method, path in self.asked if method == "GET" and re.search(pattern, path)]

    def note(self, method: str, path: str) -> Fault | None:
        """Write down a request; the fault that it meets."""
        with self.lock:
            self.busy += 1
            self.busiest = max(self.busiest, self.busy)
            self.asked.append((method, path))
            for fault in self.faults:
                if fault.method == method and fault.times and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None

    def objects(self, prefix: str = "") -> dict[str, bytes]:
        """What is in the bucket, by key."""
        fs = fsspec.filesystem("s3", use_listings_cache=False)
        found = fs.find(f"{BUCKET}/{prefix}") if fs.exists(f"{BUCKET}/{prefix}") else []
        return {path.removeprefix(f"{BUCKET}/"): fs.cat_file(path) for path in found}


class _Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: ObjectStore

    def _forward(self) -> None:
        try:
            self._proxied()
        finally:
            with self.store.lock:
                self.store.busy -= 1

    def _proxied(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.store.note(self.command, self.path)
        if fault is not None and fault.kind == "status":
            return self._answer(fault.status, [], b"")
        if fault is not None and fault.kind == "hold":
            self.store.let_go.wait(180)
            self.close_connection = True
            return None
        if fault is not None and fault.kind == "reset":
            # An RST instead of an answer.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return self.connection.close()
        connection = http.client.HTTPConnection(*self.store.moto, timeout=30)
        # Everybody may read: a web browser does not sign.
        connection.request(self.command, self.path, body, {"Authorization": ANYBODY} | dict(self.headers))
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        time.sleep(self.store.seconds)
        if fault is not None and fault.kind == "flip":
            data = data[:-1] + bytes([data[-1] ^ 1])
        if fault is not None and fault.kind == "swell":
            data += bytes(1000)
        headers = [(k, v) for k, v in answer.getheaders() if k.lower() not in ("content-length", "connection", "date")]
        if self.command == "HEAD":
            headers.append(("Content-Length", answer.getheader("Content-Length") or "0"))
        return self._answer(answer.status, headers, data, fault.kind if fault else "")

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, kind: str = "") -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if kind in ("cut", "stall"):
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            if kind == "stall":
                self.store.let_go.wait(60)
            self.close_connection = True
            return
        self.wfile.write(data)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _forward

    def handle(self) -> None:
        with suppress(OSError):  # who asked is gone
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def running() -> Iterator[ObjectStore]:
    """Servers with an empty bucket, and the environment that leads to them."""
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    store = ObjectStore(moto.get_host_and_port())
    thread = threading.Thread(target=store.server.serve_forever, daemon=True)
    thread.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {**MOTO, "AWS_ENDPOINT_URL": store.endpoint}.items():
                patch.setenv(name, value)
            _forget_clients()
            # moto keeps its buckets as long as the process lasts.
            fsspec.filesystem("s3", use_listings_cache=False).makedirs(BUCKET, exist_ok=True)
            yield store
            _forget_clients()
    finally:
        store.server.shutdown()
        store.server.server_close()
        moto.stop()


def _forget_clients() -> None:
    """Close the connections of s3's file systems now: collected in another test's event loop, they complain there."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    gc.collect()


def wait_for(done: Callable[[], bool]) -> None:
    """Until something is so; for two minutes at most."""
    for _ in range(12_000):
        if done():
            return
        time.sleep(0.01)
    pytest.fail("it never came to be")


def kill(process: subprocess.Popen[bytes], bucket: ObjectStore) -> None:
    """End a process as a power cut does."""
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    bucket.let_go.set()


@pytest.fixture(scope="module")
def servers() -> Iterator[ObjectStore]:
    """Both servers, for all tests of a module."""
    with running() as store:
        yield store


@pytest.fixture
def bucket(servers: ObjectStore) -> ObjectStore:
    """An empty bucket, and nothing that goes wrong."""
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    if found := fs.find(BUCKET):
        fs.rm(found)
    servers.asked.clear()
    servers.faults.clear()
    servers.seconds = servers.busiest = 0
    servers.let_go.clear()
    return servers


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses between tries, and nothing in memory://."""
    monkeypatch.setattr(place, "PAUSES", (0.01,))
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Go to another machine: an empty cache of its own."""

    def go(name: str) -> Path:
        monkeypatch.setenv("HSAE_CACHE", str(tmp_path / name))
        return tmp_path / name

    return go
