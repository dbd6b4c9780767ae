"""The page's HTML: the skeleton with its style and scripts inside, and the file with the data embedded."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsae.errors import UserError
from hsae.evidence import Index, Subject
from hsae.figures import size
from hsae.files import replacing
from hsae.inspect.page.documents import BLOCK, Documents
from hsae.progress import Bar, say

if TYPE_CHECKING:
    from rich.console import Console

LEVEL = 6
"""of compression: 9 takes twice as long for 1% less"""
SCRIPTS = ("source.js", "draw.js", "scheme.js", "list.js", "panels.js", "latent.js", "page.js")


def write_page(
    subject: Subject, index: Index, latents: Sequence[int] | None, path: Path, console: Console | None = None
) -> None:
    """Write one HTML file that holds everything it shows and asks no one for anything.

    Args:
        subject: which SAE, and the store.
        index: its index.
        latents: those to show, in this order; None: all.
        path: the file.
        console: where to show progress; None shows nothing.

    Raises:
        UserError: there is no such latent, or the file cannot be written.
    """
    for latent in latents or ():
        index.check(latent)
    documents = Documents(subject, index, latents)
    try:
        with (
            replacing(path) as aside,
            open(aside, "w", encoding="utf-8", newline="\n") as file,
            Bar(console, "page", len(documents.latents), unit="latents") as bar,
        ):
            file.write(shell(f"{subject.record.name} · {subject.row.setup}", {"summary": documents.summary()}))
            for number in range(documents.blocks):
                packed = zlib.compress(dumped(documents.block(number)).encode(), LEVEL)
                text = base64.b64encode(packed).decode("ascii")
                file.write(f'<script type="text/plain" id="block-{number}">{text}</script>\n')
                bar.advance(min(BLOCK, len(documents.latents) - number * BLOCK))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None
    if console is not None:
        count = len(documents.latents)
        say(console, f"{path}: {count:,} latent{'s' * (count != 1)}, {size(path.stat().st_size)}")


def shell(title: str, source: Mapping[str, Any], scripts: Sequence[str] = (), styles: Sequence[str] = ()) -> str:
    """The page without its blocks, which may follow it: the end tags are left to the browser.

    Args:
        title: of the browser's tab.
        source: `{"summary": ...}` with blocks embedded behind, or `{"base": path}` of a server.
        scripts: more scripts, run after the page's own.
        styles: more style sheets.
    """
    own = files("hsae.inspect.page")
    styles = (own.joinpath("page.css").read_text(encoding="utf-8"), *styles)
    scripts = (*(own.joinpath(name).read_text(encoding="utf-8") for name in SCRIPTS), *scripts)
    # A policy that names the very texts below: nothing else runs or is asked for, whatever the contexts hold.
    asks = "'self'" if "base" in source else "'none'"
    policy = (
        f"default-src 'none'; script-src {_hashes(scripts)}; style-src {_hashes(styles)}; connect-src {asks}; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": policy,
        "title": html.escape(title),
        "styles": "\n".join(f"<style>{text}</style>" for text in styles),
        "source": dumped(source),
        "scripts": "\n".join(f"<script>{text}</script>" for text in scripts),
    }
    # In one go, so that a run named like one of the places is not filled in itself.
    skeleton = own.joinpath("page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], skeleton)


def dumped(document: Mapping[str, Any]) -> str:
    """JSON in ASCII that cannot end the script element it stands in, whatever its strings hold.

    Raises:
        ValueError: a NaN or an infinity is in it.
    """
    text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hashes(texts: Sequence[str]) -> str:
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii") for text in texts)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
