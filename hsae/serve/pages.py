"""The pages: the inspector's own, fed by this server, and those over many runs, made of the same parts."""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from hsae.inspect.page import shell
from hsae.serve.api import Api, refused
from hsae.serve.shelf import Name
from hsae.serve.told import NotHere

SHARED = "hsae.inspect.page"
"""where what both kinds of pages are made of lies"""
STATIC = {
    "page.css": SHARED,
    "draw.js": SHARED,
    "scheme.js": SHARED,
    "compare.css": "hsae.compare",
    "compared.css": __package__,
    "frame.js": __package__,
    "serve.css": __package__,
    "common.js": __package__,
    "start.js": __package__,
    "run.js": __package__,
    "index.js": __package__,
    "compare.js": __package__,
    "error.js": __package__,
}
ADDED = ("common.js", "links.js", "text.js", "steer.js", "beside.js")
"""scripts that the inspector's page gets beside its own"""


class Pages:
    """The pages.

    Args:
        api: what they ask.
    """

    def __init__(self, api: Api) -> None:
        self.api = api

    def routes(self) -> list[Route]:
        """Where they are."""
        route = self.api.turns.route
        return [
            route("/", self.start),
            route("/run/{run}", self.run),
            route("/sae/{sae}", self.sae),
            route("/compare", self.compare),
            route("/static/{name}", self.static),
        ]

    def start(self, request: Request) -> Response:
        """Every run."""
        return _page("hsae", "start")

    def run(self, request: Request) -> Response:
        """One run."""
        return _page(self.api.shelf.catalogue.record(request.path_params["run"]).name, "run")

    def sae(self, request: Request) -> Response:
        """One SAE: the inspector's page, or the way to an index."""
        name = request.path_params["sae"]
        subject = self.api.shelf.subject(Name.read(name))
        if not self.api.shelf.stands(subject):
            return _page(name, "index")
        title, base = f"{subject.record.name} · {subject.row.setup}", f"/api/sae/{quote(name, safe=':@')}"
        text = shell(title, {"base": base}, [_text(script) for script in ADDED], [_text("serve.css")])
        # What the page says of itself in a <meta>, said again where it also keeps frames away.
        said = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
        policy = html.unescape(said[1]) if said else "default-src 'none'"
        return HTMLResponse(text, headers={"content-security-policy": f"{policy}; frame-ancestors 'none'"})

    def compare(self, request: Request) -> Response:
        """SAEs side by side."""
        return _page("compare", "compare")

    def static(self, request: Request) -> Response:
        """A style sheet or a script."""
        name = request.path_params["name"]
        if name not in STATIC:
            raise NotHere(f"nothing here is called {name!r}")
        text = _text(name)
        tag = f'"{hashlib.sha256(text.encode()).hexdigest()[:16]}"'
        headers = {"etag": tag, "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(None, 304, headers)
        return Response(text, headers=headers, media_type="text/css" if name.endswith(".css") else "text/javascript")


def error_page(error: Exception) -> Response:
    """What a browser is shown in place of a page."""
    status, line = refused(error)
    return _page("hsae", "error", {"line": line, "status": str(status)}, status)


def _page(title: str, view: str, data: Mapping[str, str] | None = None, status: int = 200) -> Response:
    filled = _text("page.html")
    attributes = "".join(f' data-{key}="{html.escape(value)}"' for key, value in (data or {}).items())
    for name, value in {"title": html.escape(title), "view": view, "data": attributes}.items():
        filled = filled.replace(f"{{{{{name}}}}}", value)
    return HTMLResponse(filled, status)


@cache
def _text(name: str) -> str:
    package = STATIC.get(name, __package__)
    home = files(package)
    return (home / "static" if package == __package__ else home).joinpath(name).read_text(encoding="utf-8")
