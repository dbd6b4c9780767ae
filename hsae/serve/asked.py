"""What a request asks for, checked field by field and held to its limits; and JSON for an answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from hsae.plain import finite

TEXT = 20_000
"""characters of a text or a prompt"""
WRITTEN = 256
"""tokens to write"""
LATENTS = 16
"""latents to steer by at once"""
BODY = 256 * 1024
"""bytes of a request: a text of the longest kind, all of it escaped"""


async def body(request: Request) -> Mapping[str, Any]:
    """The request's JSON object.

    Raises:
        HTTPException: 400, it is none; 413, it is longer than `BODY`.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # A form of another site could send anything else without asking first.
        raise HTTPException(400, "the request must be JSON, and say so in content-type")
    content = bytearray()
    try:
        async for part in request.stream():
            content += part
            if len(content) > BODY:
                raise HTTPException(413, f"the request has more than {BODY:,} bytes")
    except ClientDisconnect:
        raise HTTPException(400, "the request ended early") from None
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        raise HTTPException(400, "the request is not JSON") from None
    if not isinstance(found, dict):
        raise HTTPException(400, "the request must be a JSON object")
    return found


def text(table: Mapping[str, Any], key: str) -> str:
    """A text, not empty and not longer than it may be."""
    value = table.get(key)
    if not isinstance(value, str):
        raise HTTPException(400, f"{key} must be text")
    if not value:
        raise HTTPException(400, f"{key} is empty")
    if len(value) > TEXT:
        raise HTTPException(413, f"{key} has {len(value):,} characters; {TEXT:,} are the most")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise HTTPException(400, f"{key} holds half a character (a lone surrogate)") from None
    return value


def number(table: Mapping[str, Any], key: str, default: float, low: float, high: float) -> float:
    """A number in a range."""
    value = table.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise HTTPException(400, f"{key} must be a number")
    if not low <= value <= high:
        raise HTTPException(400, f"{key} must be {low:g} to {high:g}")
    return float(value)


def whole(table: Mapping[str, Any], key: str, default: int, low: int, high: int) -> int:
    """A whole number in a range."""
    value = number(table, key, float(default), float(low), float(high))
    if value != int(value):
        raise HTTPException(400, f"{key} must be a whole number")
    return int(value)


def choice(table: Mapping[str, Any], key: str, choices: tuple[str, ...]) -> Any:
    """One of some words; the first of them where none is given."""
    value = table.get(key, choices[0])
    if value not in choices:
        raise HTTPException(400, f"{key} must be one of {', '.join(choices)}")
    return value


def flag(table: Mapping[str, Any], key: str) -> bool:
    """true or false; false where it is not given."""
    value = table.get(key, False)
    if not isinstance(value, bool):
        raise HTTPException(400, f"{key} must be true or false")
    return value


def names(table: Mapping[str, Any], key: str, least: int, most: int) -> tuple[str, ...]:
    """Some different names."""
    value = table.get(key)
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise HTTPException(400, f"{key} must be a list of names")
    found = tuple(dict.fromkeys(value))
    if not least <= len(found) <= most:
        raise HTTPException(400, f"name {least} to {most} different {key}, not {len(found)}")
    return found


def latents(table: Mapping[str, Any], key: str, size: int) -> tuple[int, ...]:
    """Latents of a dictionary of that size, each once."""
    value = table.get(key)
    if not isinstance(value, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in value):
        raise HTTPException(400, f"{key} must be a list of numbers")
    found = tuple(dict.fromkeys(value))
    if not 1 <= len(found) <= LATENTS:
        raise HTTPException(400, f"name 1 to {LATENTS} latents, not {len(found)}")
    for latent in found:
        if not 0 <= latent < size:
            raise HTTPException(400, f"latent {latent} is not in 0…{size - 1}")
    return found


def answer(view: Mapping[str, Any]) -> Response:
    """An answer of plain data; null stands for what is no finite number."""
    return json_text(json.dumps(finite(view), allow_nan=False))


def json_text(text: str | bytes, status: int = 200) -> Response:
    """An answer that is JSON already."""
    return Response(text, status, media_type="application/json")
