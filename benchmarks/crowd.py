"""Many clients of one `hsae serve` at once, in a process of their own; every answer is held against the right one.

    python benchmarks/crowd.py http://127.0.0.1:8484 bundled:bp:0 --clients 200 --seconds 20

Each client keeps one connection and asks for one thing after the other: lists, a table of latents, a block of them,
pages, its own text, and what no server should answer. Each was asked for alone, before. Prints JSON:
for each kind how many answers came, how many were wrong, how often a client was told to come again, and the times.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

TEXTS = ("Once upon a time, there was a little dog.", "Tom and Lily went to the park.", "The sun was hot. It is red.")
SHARES = {"list": 4, "run": 2, "table": 2, "latent": 10, "page": 4, "text": 1, "bad": 3}
"""how often each kind is asked for"""
LONGEST = 60.0
"""seconds that an answer may take"""


@dataclass(frozen=True)
class Ask:
    """A request: its head's first line and more of it, its body, and the statuses that are right."""

    kind: str
    method: str
    path: str
    body: bytes = b""
    headers: tuple[str, ...] = ()
    right: tuple[int, ...] = (200,)

    def bytes(self, host: str) -> bytes:
        """As it goes over the line."""
        own = [] if any(header.lower().startswith("host:") for header in self.headers) else [f"Host: {host}"]
        json_ = ["Content-Type: application/json"] if self.body else []
        head = [f"{self.method} {self.path} HTTP/1.1", *own, *json_, f"Content-Length: {len(self.body)}", *self.headers]
        return "\r\n".join([*head, "", ""]).encode() + self.body


@dataclass
class Tally:
    """What came of one kind of request."""

    seconds: list[float] = field(default_factory=list)
    refused: int = 0
    wrong: list[str] = field(default_factory=list)


class Client:
    """One connection, opened again where the server closed it between two requests."""

    def __init__(self, base: str) -> None:
        parts = urlsplit(base)
        self.address, self.host = (parts.hostname or "", parts.port or 80), parts.netloc
        self._line: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, what: Ask) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the answer."""
        async with asyncio.timeout(LONGEST):
            used = self._line is not None
            try:
                return await self._once(what)
            except (ConnectionError, asyncio.IncompleteReadError):
                self.close()
                if not used:
                    raise
                return await self._once(what)  # It had been idle for too long.

    async def _once(self, what: Ask) -> tuple[int, dict[str, str], bytes]:
        if self._line is None:
            self._line = await asyncio.open_connection(*self.address)
        reader, writer = self._line
        writer.write(what.bytes(self.host))
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        if headers.get("connection", "").lower() == "close":
            self.close()
        return int(head[0].split()[1]), headers, body

    def close(self) -> None:
        """Go away."""
        if self._line is not None:
            self._line[1].close()
        self._line = None


class Crowd:
    """All clients, the right answers, and what came."""

    def __init__(self, base: str, sae: str, pause: float) -> None:
        self.base, self.pause = base, pause
        self.tally = {kind: Tally() for kind in SHARES}
        self._sae, self._right = quote(sae, safe=":"), {}
        self._menu: dict[str, list[Ask]] = {}

    async def learn(self) -> None:
        """Ask for everything once, alone."""
        client, run = Client(self.base), self._sae.partition(":")[0]
        table = f"/api/sae/{self._sae}/summary"
        summary = json.loads((await client.ask(Ask("table", "GET", table)))[2])
        blocks = -(-summary["dictionary"] // summary["block"])
        get = {
            "list": ["/api/runs"],
            "run": [f"/api/runs/{run}", f"/api/sae/{self._sae}"],
            "table": [table],
            "latent": [f"/api/sae/{self._sae}/block/{number}" for number in range(blocks)],
            "page": ["/", f"/run/{run}", f"/sae/{self._sae}", "/static/page.css", "/static/draw.js"],
        }
        self._menu = {kind: [Ask(kind, "GET", path) for path in paths] for kind, paths in get.items()}
        self._menu["bad"] = bad(run, self._sae)
        read = f"/api/sae/{self._sae}/read"
        self._menu["text"] = [Ask("text", "POST", read, json.dumps({"text": text}).encode()) for text in TEXTS]
        for what in (ask for kind in SHARES for ask in self._menu[kind]):
            status, _, body = await (self._text(client, what) if what.kind == "text" else client.ask(what))
            assert status in what.right, f"{what.method} {what.path} alone: {status} {body[:200]!r}"
            self._right[what] = body
        client.close()

    async def press(self, clients: int, seconds: float, seed: int) -> None:
        """All clients at once, for so long."""
        end = time.monotonic() + seconds
        await asyncio.gather(*(self._one(random.Random(f"{seed}/{i}"), end) for i in range(clients)))

    async def _one(self, draw: random.Random, end: float) -> None:
        client, kinds, shares = Client(self.base), list(SHARES), list(SHARES.values())
        while time.monotonic() < end:
            kind = draw.choices(kinds, shares)[0]
            await self._hold(client, draw.choice(self._menu[kind]))
            if self.pause:
                await asyncio.sleep(draw.expovariate(1 / self.pause))
        client.close()

    async def _hold(self, client: Client, what: Ask) -> None:
        tally, begun = self.tally[what.kind], time.perf_counter()
        try:
            status, headers, body = await (self._text(client, what) if what.kind == "text" else client.ask(what))
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            client.close()
            tally.wrong.append(f"{what.method} {what.path[:80]}: {type(error).__name__} {error}")
            return
        if status == 503 and headers.get("retry-after", "").isdecimal():
            tally.refused += 1
            await asyncio.sleep(int(headers["retry-after"]))
        elif status not in what.right or body != self._right[what]:
            tally.wrong.append(f"{what.method} {what.path[:80]}: {status} {body[:200]!r}")
        else:
            tally.seconds.append(time.perf_counter() - begun)

    async def _text(self, client: Client, what: Ask) -> tuple[int, dict[str, str], bytes]:
        """One's own text, from the request to the result; the page asks for it in the same way."""
        status, headers, body = await client.ask(what)
        wait = 0.06
        while status in (200, 202) and (view := json.loads(body))["state"] in ("waiting", "running"):
            await asyncio.sleep(wait)
            wait = min(1.25 * wait, 0.4)
            status, headers, body = await client.ask(Ask("text", "GET", f"/api/jobs/{view['job']}"))
        if status in (200, 202):
            view = json.loads(body)
            return (200 if view["state"] == "done" else 500), headers, json.dumps(view.get("result", view)).encode()
        return status, headers, body


def bad(run: str, sae: str) -> list[Ask]:
    """What no server should answer, each with the statuses that are right."""
    foreign = ("Origin: http://evil.example",)
    return [
        Ask("bad", "GET", "/api/runs/..%2f..%2fetc", right=(404,)),
        Ask("bad", "GET", f"/api/runs/{run}/../../etc/passwd", right=(404,)),
        Ask("bad", "GET", f"/api/sae/{sae}/block/{'9' * 20}", right=(404,)),
        Ask("bad", "GET", f"/api/runs/{'a' * 6000}", right=(414,)),
        Ask("bad", "GET", "/api/runs", headers=("Host: evil.example",), right=(400,)),
        Ask("bad", "POST", f"/api/sae/{sae}/read", b'{"text": "a"}', foreign, right=(403,)),
        Ask("bad", "POST", f"/api/sae/{sae}/read", b'{"text": ', right=(400,)),
        Ask("bad", "POST", f"/api/sae/{sae}/steer", b'{"latents": [-1], "prompt": "a"}', right=(400,)),
        Ask("bad", "PUT", "/api/runs", b"{}", right=(405,)),
    ]


def figures(tally: Tally) -> dict[str, Any]:
    """Counts, and milliseconds: median, 99th percentile, longest."""
    times = sorted(tally.seconds)
    of = {"p50": _at(times, 0.5), "p99": _at(times, 0.99), "max": _at(times, 1.0)}
    counts = {"answers": len(times), "refused": tally.refused, "wrong": len(tally.wrong)}
    return {**counts, **{name: round(1000 * value, 1) for name, value in of.items()}, "first_wrong": tally.wrong[:3]}


def _at(times: Sequence[float], share: float) -> float:
    return times[min(int(share * len(times)), len(times) - 1)] if times else float("nan")


async def crowd(base: str, sae: str, clients: int, seconds: float, pause: float, seed: int) -> dict[str, Any]:
    """All of it."""
    those = Crowd(base, sae, pause)
    await those.learn()
    begun = time.perf_counter()
    await those.press(clients, seconds, seed)
    took = time.perf_counter() - begun
    return {"seconds": took, "kinds": {kind: figures(tally) for kind, tally in those.tally.items()}}


def main() -> None:
    """Ask, and print what came."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", help="the server's address")
    parser.add_argument("sae", help="RUN:SETUP:SEED, with an index")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--pause", type=float, default=0.0, help="mean seconds between a client's requests")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    print(json.dumps(asyncio.run(crowd(**vars(asked)))))


if __name__ == "__main__":
    main()
