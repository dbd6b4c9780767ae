"""The application: the routes behind the guard, and what is said when something cannot be had."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from hsae.errors import UserError
from hsae.serve.api import Api, refused
from hsae.serve.guard import Gate, Guard
from hsae.serve.lists import Lists
from hsae.serve.pages import Pages, error_page
from hsae.serve.told import NotHere
from hsae.serve.turns import Busy


def make_app(api: Api, gate: Gate) -> ASGIApp:
    """The application.

    Args:
        api: what answers.
        gate: who may ask.
    """
    inner = Starlette(
        routes=[*Lists(api).routes(), *api.routes(), *Pages(api).routes()],
        # What is none of the first four is a fault of ours: the client gets a line, the terminal the traceback.
        exception_handlers=dict.fromkeys((HTTPException, NotHere, UserError, Busy, Exception), _fail),
    )
    # A redirect would repeat what was sent.
    inner.router.redirect_slashes = False
    return Guard(inner, gate)


def _fail(request: Request, error: Exception) -> Response:
    if not request.url.path.startswith("/api/"):
        return error_page(error)
    status, line = refused(error)
    return JSONResponse({"error": line}, status, {"retry-after": "2"} if status == 503 else {})
