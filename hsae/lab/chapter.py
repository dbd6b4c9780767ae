"""A chapter of the lab's report: Markdown, figures and numbers; written as report.md, report.html and report.json."""

from __future__ import annotations

import base64
import dataclasses
import html
import json
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hsae.canvas import available
from hsae.errors import UserError
from hsae.files import alone, cache_root, replacing
from hsae.lab import LabConfig
from hsae.plain import finite
from hsae.progress import say

if TYPE_CHECKING:
    from rich.console import Console

S = TypeVar("S", bound=LabConfig)

REPORT = "report.md"
_IMAGE = re.compile(r"!\[([^\]]*)\]\(([\w.-]+\.svg)\)")
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --soft: #5c5c5c; --line: #dcdcdc; --paper: #fff; --mark: #f4f4f2 }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e6e3; --soft: #a5a29d; --line: #3a3a3a; --paper: #161616;
  --mark: #222 } img { background: #fff; border-radius: 4px } }
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem 1rem 4rem; color: var(--ink); background: var(--paper);
  font: 16px/1.55 system-ui, sans-serif }
h1, h2, h3 { line-height: 1.25; margin: 2.2em 0 .6em } h1:first-child { margin-top: 0 }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .9em; font-variant-numeric: tabular-nums }
th, td { padding: .25em .7em; border-bottom: 1px solid var(--line); vertical-align: top }
th { color: var(--soft); font-weight: 600 } img { max-width: 100%; height: auto }
code, pre { background: var(--mark); border-radius: 3px; font-size: .9em } code { padding: 0 .25em }
pre { padding: .7em 1em; overflow-x: auto } pre code { padding: 0 } blockquote { color: var(--soft); margin-left: 0 }
"""


@dataclass(frozen=True)
class Chapter:
    """What one lab found.

    Attributes:
        title: of the chapter.
        body: Markdown, with headings from `##` on; figures as `![what it shows](NAME.svg)`, from the report's folder.
        numbers: everything that the text says in numbers, as plain data.
        command: what makes it.
    """

    title: str
    body: str
    numbers: dict[str, Any] = field(default_factory=dict)
    command: str = ""


def publish(
    lab: str, settings: S, chapter: Callable[[S, Path, Console | None], Chapter], console: Console | None
) -> Path:
    """Write the report of one experiment, and show it; the path of its Markdown.

    Args:
        lab: the experiment, as the command line names it.
        settings: its config.
        chapter: computes what is missing, and tells it.
        console: where to show progress and the report; None shows nothing.

    Raises:
        UserError: of the chapter; matplotlib is not installed; or the folder cannot be written.
        KeyboardInterrupt: on Ctrl-C; the same call goes on from there.
    """
    from rich.markdown import Markdown

    available(f"lab {lab}")
    out = folder_of(settings, lab)
    with alone(out, f"hsae lab {lab}"):
        found = chapter(settings, out, console)
        report = write(out, found.title, [found])
    if console is not None:
        console.print(Markdown(re.sub(r"^!\[.*\n?", "", found.body, flags=re.MULTILINE)))
        say(console, f"report: {report}, and report.html beside it")
    return report


def folder_of(settings: LabConfig, name: str) -> Path:
    """The folder of a lab's report and of its parts."""
    return Path(settings.out) if settings.out else cache_root() / "lab" / f"{name}-{settings.scale}"


def command_of(verb: str, settings: Any, words: str = "") -> str:
    """The command that a lab's settings stand for.

    Args:
        verb: after `hsae`, such as `lab alignment`.
        settings: the verb's config; what is not as by default is said.
        words: the field whose words come before the flags.
    """
    said = ["hsae", *verb.split()]
    default = type(settings)()
    if words and getattr(settings, words) != getattr(default, words):
        value = getattr(settings, words)
        said += map(str, value if isinstance(value, tuple) else (value,))
    for each in dataclasses.fields(settings):
        value = getattr(settings, each.name)
        if each.name not in (words, "out", "workers") and value != getattr(default, each.name):
            flag = f"--{each.name.replace('_', '-')}"
            if isinstance(value, bool):
                said.append(flag if value else f"--no-{flag.removeprefix('--')}")
            else:
                said += [flag, *map(str, value if isinstance(value, tuple) else (value,))]
    return shlex.join(said)


def write(out: Path, title: str, chapters: Sequence[Chapter], introduction: str = "") -> Path:
    """Write the report of some chapters, whose figures are in `out`; the path of its Markdown.

    Raises:
        UserError: the folder cannot be written.
    """
    several = len(chapters) > 1
    parts = [f"# {title}", introduction]
    for chapter in chapters:
        body = re.sub(r"^(#+ )", r"#\1", chapter.body.strip(), flags=re.MULTILINE) if several else chapter.body.strip()
        parts += [f"## {chapter.title}" if several else "", f"    {chapter.command}" if chapter.command else "", body]
    markdown = "\n\n".join(part for part in parts if part) + "\n"
    numbers = {c.title: {"command": c.command, **finite(c.numbers)} for c in chapters}
    try:
        _write(out / "report.json", json.dumps(numbers, indent=1, allow_nan=False) + "\n")
        _write(out / "report.html", page(title, markdown, out))
        _write(out / REPORT, markdown)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror})") from None
    return out / REPORT


def page(title: str, markdown: str, figures: Path) -> str:
    """Markdown as one HTML file that needs nothing beside it; its figures are taken from a folder."""
    from markdown_it import MarkdownIt

    def inlined(match: re.Match[str]) -> str:
        data = base64.b64encode((figures / match[2]).read_bytes()).decode()
        return f"![{match[1]}](data:image/svg+xml;base64,{data})"

    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    reader.validateLink = lambda url: url.startswith(("https://", "http://", "#", "data:image/svg+xml;base64,"))
    body = reader.render(_IMAGE.sub(inlined, markdown))
    body = body.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )


def _write(path: Path, text: str) -> None:
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")
