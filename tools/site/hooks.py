"""mkdocs' hooks: pages made from the code, links to the rest of the repository, and formulas as MathML."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import links
import pages

ROOT = Path(__file__).parents[2]
# Where the formulas of a page wait until its Markdown is HTML; GitHub reads the same signs.
_DISPLAY = re.compile(r"^```math\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"\$`([^`\n]+)`\$")
_WAITING = re.compile(r"(<p>)?MATH(\d+)HTAM(?(1)</p>|)")
_formulas: list[str] = []


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that no file under docs/ holds."""
    from mkdocs.structure.files import File

    made = dict(pages.pages())
    written = {file.src_uri: file.content_string for file in files.documentation_pages()}
    made |= dict(links.reached(written | made, ROOT))
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        made.setdefault(links.in_site(name, ROOT), (ROOT / name).read_text(encoding="utf-8"))
    for place, markdown in made.items():
        files.append(File.generated(config, place, content=markdown))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn links, and take formulas out of the way of Markdown."""
    markdown = links.rewritten(markdown, page.file.src_uri, ROOT)
    markdown = _DISPLAY.sub(lambda match: _wait(match[1].strip(), "block"), markdown)
    return _INLINE.sub(lambda match: _wait(match[1], "inline"), markdown)


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Put the formulas in."""
    return _WAITING.sub(lambda match: _formulas[int(match[2])], html)


def _wait(latex: str, display: str) -> str:
    from latex2mathml.converter import convert

    _formulas.append(convert(latex, display=display))
    return f"MATH{len(_formulas) - 1}HTAM"
