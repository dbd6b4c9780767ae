"""Who may ask: the checks that stand before every request, and the headers that go with every answer.

A page on the web can make a browser send requests to this machine. Against that: the name in `Host` must be one of
this machine's (a foreign name that was made to point here is refused), a request that changes something must come from
a page of the server's own, and where a token is asked for nothing is answered without it.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS: Mapping[str, str] = {
    # Everything from the server itself, no script or style within a page, no frame around one.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
READING = ("GET", "HEAD")
ADDRESS = 4000
"""characters of an address: names of a run, a store and a hook point, all of them escaped"""
HEAD = 16 * 1024
"""bytes of all that comes before a request's body"""
PIECE = 64 * 1024
"""bytes of an answer that are handed over at a time: the rest waits until the client has taken them"""


@dataclass(frozen=True)
class Gate:
    """Who is let in.

    Attributes:
        names: host names that a request may be sent to, beside IP addresses and localhost.
        token: what must be shown; empty: nothing.
        cookie: the name under which a browser keeps its pass.
    """

    names: frozenset[str] = frozenset()
    token: str = ""
    cookie: str = "hsae"
    # Cookies go to every port of a host: what a browser keeps is no token, and is worth nothing to the next server.
    _key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    @property
    def ticket(self) -> str:
        """What the cookie holds."""
        return hmac.new(self._key, self.token.encode(), hashlib.sha256).hexdigest()

    def knows_host(self, host: str) -> bool:
        """Whether a `Host` header names this machine. A name that was made to point here is a name, not an address."""
        name = _name(host)
        if name in ("localhost", *self.names):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def own_page(self, headers: Headers) -> bool:
        """Whether a request comes from a page of the server's own, or from no page at all."""
        origin = headers.get("origin")
        if origin is not None:
            host = headers.get("host", "").lower()
            return host != "" and origin.lower() in (f"http://{host}", f"https://{host}")
        return headers.get("sec-fetch-site", "none") in ("none", "same-origin")

    def shown(self, headers: Headers) -> bool:
        """Whether the token is shown, in a header, or the pass in a cookie."""
        if not self.token:
            return True
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.is_token(token.strip()):
            return True
        ticket = cookie_parser(headers.get("cookie", "")).get(self.cookie, "")
        return hmac.compare_digest(ticket.encode(), self.ticket.encode())

    def is_token(self, token: str) -> bool:
        """Compared in the same time, however much of it is right."""
        return hmac.compare_digest(token.encode(errors="replace"), self.token.encode())


def names_of_this_machine(host: str) -> frozenset[str]:
    """What other machines may call this one: the name it was told to listen on, and its own."""
    own = socket.gethostname().lower()
    return frozenset({_name(host), own, own.split(".")[0], f"{own.split('.')[0]}.local"} - {"", ".local"})


def _name(host: str) -> str:
    """A `Host` header without its port and brackets, in small letters; empty for nonsense."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


class Guard:
    """The checks, as ASGI middleware.

    Args:
        app: what answers who is let in.
        gate: who is.
    """

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self.app, self.gate = app, gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on; both with the headers."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            body = message.get("body", b"")
            last = (len(body) - 1) // PIECE * PIECE
            for first in range(0, last, PIECE):
                await send({**message, "body": body[first : first + PIECE], "more_body": True})
            await send({**message, "body": body[last:]} if last > 0 else message)

        answer = self._refuse(scope)
        await (answer or self.app)(scope, receive, with_headers)

    def _refuse(self, scope: Scope) -> Response | None:
        headers, gate = Headers(scope=scope), self.gate
        if len(scope["raw_path"]) + len(scope["query_string"]) > ADDRESS:
            return _no(scope, 414, f"the address has more than {ADDRESS:,} characters")
        if sum(len(name) + len(value) for name, value in scope["headers"]) > HEAD:
            return _no(scope, 431, f"the request's headers have more than {HEAD:,} bytes")
        if not gate.knows_host(headers.get("host", "")):
            return _no(scope, 400, "this server does not go by that name; open the address that it printed")
        if scope["method"] not in READING and not gate.own_page(headers):
            return _no(scope, 403, "the request comes from a page of another site")
        if gate.shown(headers):
            return None
        query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        if scope["method"] in READING and gate.is_token(query.pop("token", "")):
            # The token leaves the address bar.
            there = RedirectResponse(_relative(scope["raw_path"], query), 303)
            there.set_cookie(gate.cookie, gate.ticket, httponly=True, samesite="lax")
            return there
        return _no(scope, 401, "a token is wanted: open the address that `hsae serve` printed, with its token")


def _relative(path: bytes, query: Mapping[str, str]) -> str:
    # One slash: two would name another host.
    return "/" + path.decode("latin-1").lstrip("/\\") + (f"?{urlencode(query)}" if query else "")


def _no(scope: Scope, status: int, line: str) -> Response:
    if scope["path"].startswith("/api/"):
        return JSONResponse({"error": line}, status)
    return Response(f"hsae: {line}\n", status, media_type="text/plain")
