"""Who computes when: a few requests at a time, a bounded queue behind them, and a word for those who come after it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

P = ParamSpec("P")
T = TypeVar("T")
AT_ONCE = 4
"""requests that are answered at a time: Python runs one thread at once, so more of them would only wait in the midst"""
QUEUE = 256
"""requests that may wait for their turn"""


class Busy(Exception):
    """As much is being done, and waits, as may."""


class Turns:
    """Runs functions in threads, so that the loop that reads and writes is never held up."""

    def __init__(self) -> None:
        self._turn, self._waiting = asyncio.Semaphore(AT_ONCE), 0

    def route(self, path: str, answer: Callable[[Request], Response], method: str = "GET") -> Route:
        """A route whose answers are made in turn."""

        async def endpoint(request: Request) -> Response:
            return await self.run(answer, request)

        return Route(path, endpoint, methods=[method])

    async def run(self, function: Callable[P, T], *args: P.args, **more: P.kwargs) -> T:
        """What the function returns, when its turn has come.

        Raises:
            Busy: too many wait already.
        """
        if self._waiting >= QUEUE:
            raise Busy
        self._waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self._waiting -= 1
        try:
            return await run_in_threadpool(function, *args, **more)
        finally:
            self._turn.release()
