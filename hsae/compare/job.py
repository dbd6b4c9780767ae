"""The verb: make the comparison, write the page, print it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from hsae.compare import CompareConfig
from hsae.compare.page import page
from hsae.compare.report import prepare
from hsae.compare.terminal import draw
from hsae.errors import Interrupted, UserError
from hsae.figures import size
from hsae.files import replacing
from hsae.plain import finite
from hsae.progress import Bar, say
from hsae.terminal import Terminal


def show(settings: CompareConfig, console: Console | None) -> None:
    """See `hsae.compare.compare`."""
    console, errors = console or Terminal(), Terminal(stderr=True)
    out = Path(settings.html)
    if settings.html and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise UserError(f"--html {out}: " + ("a folder; name a file" if out.is_dir() else "its folder is not there"))
    work = prepare(settings)
    try:
        with Bar(errors if errors.is_terminal else None, "comparing", work.steps, unit="steps") as bar:
            report = work.do(bar.advance)
    except KeyboardInterrupt:
        raise Interrupted("stopped; nothing was written") from None
    if settings.html:
        text = page(report)
        with replacing(out) as aside:
            aside.write_text(text, encoding="utf-8")
    if settings.json:
        console.file.write(json.dumps(finite(asdict(report)), indent=1, allow_nan=False) + "\n")
    else:
        for part in draw(report, console.width):
            console.print(part)
    if settings.html:
        say(errors if settings.json else console, f"page: {out}, {size(len(text.encode()))}")
