"""A language model behind an OpenAI-compatible endpoint: POST …/chat/completions."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from concurrent.futures import CancelledError
from http.client import HTTPException
from ipaddress import ip_address
from threading import Event, Lock
from typing import Any
from urllib.parse import urlsplit

from hsae.errors import UserError, one_line

TRIES = 6
"""requests for one answer; waits of 1, 2, 4, … s lie between them"""
MOST_BYTES = 16 << 20
"""of an answer"""
LONGEST = 60.0
"""seconds that a server may make us wait (Retry-After)"""
KEY = "OPENAI_API_KEY"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: the key must not go elsewhere."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class Endpoint:
    """Asks an endpoint, again where it is busy, and counts what that costs.

    Args:
        address: such as https://api.openai.com/v1.
        model: its name there.
        concurrency: how many may ask at a time.
        timeout: seconds to wait for an answer.
        pause: seconds before the second try.
    """

    def __init__(self, address: str, model: str, concurrency: int, timeout: float, pause: float = 1.0) -> None:
        self.address, self.model = address.rstrip("/"), model
        self.concurrency, self.timeout, self.pause = concurrency, timeout, pause
        self.requests = self.read = self.written = 0
        self.stop = Event()
        self._lock = Lock()
        self._opener = urllib.request.build_opener(_NoRedirect)
        # What some models refuse: an older name of the limit, a temperature.
        self._limit, self._cool = "max_tokens", True

    @property
    def is_here(self) -> bool:
        """Whether it runs on this machine."""
        host = urlsplit(self.address).hostname or ""
        try:
            return ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    @property
    def cost(self) -> str:
        """What was asked so far, in words."""
        return f"{self.requests:,} requests, {self.read:,} tokens read, {self.written:,} written"

    def answer(self, messages: list[dict[str, str]], tokens: int) -> str:
        """The answer to chat messages; empty where the model gave none.

        Raises:
            UserError: the endpoint refuses, or does not answer in `TRIES` tries.
        """
        said = ""
        for attempt in range(TRIES):
            wait = self.pause * 2**attempt
            try:
                return self._once(messages, tokens)
            except urllib.error.HTTPError as error:
                said = self._refusal(error)
                if not said:
                    continue
                asked = error.headers.get("Retry-After", "")
                wait = min(float(asked), LONGEST) if asked.isdecimal() and len(asked) < 10 else wait
            except (OSError, HTTPException, ValueError) as error:
                reason = getattr(error, "reason", error)
                if isinstance(reason, ConnectionRefusedError):
                    raise UserError(f"endpoint {self.address}: nothing answers there; is the server running?") from None
                timed_out = isinstance(reason, TimeoutError)
                said = f"no answer in {self.timeout:g} s" if timed_out else one_line(reason)
            if attempt + 1 < TRIES and self.stop.wait(wait):
                raise CancelledError
        raise UserError(
            f"endpoint {self.address}: {TRIES} tries failed, the last with: {said}; "
            "the same command goes on from what is saved"
        )

    def _once(self, messages: list[dict[str, str]], tokens: int) -> str:
        body: dict[str, Any] = {"model": self.model, "messages": messages, self._limit: tokens}
        if self._cool:
            body["temperature"] = 0
        headers = {"Content-Type": "application/json", "User-Agent": "hsae"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.address}/chat/completions", json.dumps(body).encode(), headers)
        with self._opener.open(request, timeout=self.timeout) as response:
            raw = response.read(MOST_BYTES + 1)
        if len(raw) > MOST_BYTES:
            raise ValueError(f"an answer of over {MOST_BYTES >> 20} MiB")
        try:
            data = json.loads(raw)
        except RecursionError as error:
            raise ValueError("an answer nested too deeply") from error
        try:
            usage = data.get("usage") or {}
            with self._lock:
                self.requests += 1
                self.read += int(usage.get("prompt_tokens") or 0)
                self.written += int(usage.get("completion_tokens") or 0)
            return str(data["choices"][0]["message"].get("content") or "")
        except (AttributeError, KeyError, IndexError, TypeError, OverflowError) as error:
            raise ValueError("the answer is not a chat completion") from error

    def _refusal(self, error: urllib.error.HTTPError) -> str:
        """What an HTTP error says, if it may pass; empty where the request can be mended, and was.

        Raises:
            UserError: it will not pass.
        """
        with error:
            text = one_line(ValueError(error.read(10_000).decode("utf-8", "replace")))
        said = f"{error.code} {error.reason}: {text}" if text else f"{error.code} {error.reason}"
        if error.code == 400 and self._limit == "max_tokens" and "max_completion_tokens" in text:
            self._limit = "max_completion_tokens"
            return ""
        if error.code == 400 and self._cool and "temperature" in text:
            self._cool = False
            return ""
        if error.code in (401, 403):
            raise UserError(f"endpoint {self.address} refuses the key in ${KEY}: {said}") from None
        if error.code in (408, 409, 425, 429) or error.code >= 500:
            return said
        raise UserError(f"endpoint {self.address}, model {self.model}: {said}") from None
