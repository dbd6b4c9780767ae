"""Links of pages to files of the repository that are not under docs/: those files become pages of the site too."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from hsae.sharing.markdown import block

# [text](target) and ![text](target); code is left alone, see `_outside_code`.
_LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
_CODE = re.compile(r"(^(?:```|~~~).*?^(?:```|~~~)|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
SHOWN = {".py": "python", ".toml": "toml", ".c": "c"}
HOME = "repository/"


def rewritten(markdown: str, page: str, root: Path) -> str:
    """A page's Markdown with such links turned to the pages of the site. `page`: its place in the site."""
    here = in_repository(page)

    def turned(match: re.Match[str]) -> str:
        target = _target(here, match[2], root)
        # From page to page under docs/ a link is right as it stands.
        if target is None or (_in_docs(target) and _in_docs(here)):
            return match[0]
        return f"{match[1]}{posixpath.relpath(in_site(target, root), posixpath.dirname(page) or '.')}{match[3]}"

    parts = _CODE.split(markdown)
    return "".join(part if i % 2 else _LINK.sub(turned, part) for i, part in enumerate(parts))


def reached(pages: dict[str, str], root: Path) -> Iterator[tuple[str, str]]:
    """(place in the site, Markdown) of every file that these pages link to, and of those that they link to in turn.

    Args:
        pages: place in the site -> Markdown.
        root: of the repository.
    """
    done, left = set[str](), dict(pages)
    while left:
        page, markdown = left.popitem()
        for part in _CODE.split(markdown)[::2]:
            for match in _LINK.finditer(part):
                target = _target(in_repository(page), match[2], root)
                if target is None or _in_docs(target) or target in done:
                    continue
                done.add(target)
                made = _page(root / target, target)
                left[in_site(target, root)] = made
                yield in_site(target, root), made


def in_repository(page: str) -> str:
    """Where a page's source lies, from the repository's root."""
    return page.removeprefix(HOME) if page.startswith(HOME) else f"docs/{page}"


def in_site(target: str, root: Path) -> str:
    """The page of a file, or a folder, of the repository."""
    if _in_docs(target):
        return target.removeprefix("docs/")
    if (root / target).is_dir():
        return f"{HOME}{target}/index.md"
    return HOME + (target if target.endswith(".md") else f"{target}.md")


def _target(here: str, link: str, root: Path) -> str | None:
    """The file of the repository that a link leads to, from the root; None for every other link."""
    if re.match(r"\w+:|/", link):
        return None
    target = posixpath.normpath(posixpath.join(posixpath.dirname(here), link))
    return target if not target.startswith("..") and (root / target).exists() else None


def _in_docs(path: str) -> bool:
    return path.startswith("docs/")


def _page(path: Path, name: str) -> str:
    if path.is_dir():
        there = sorted(p.name for p in path.iterdir() if p.suffix in (*SHOWN, ".md"))
        return f"# {name}\n\n" + "\n".join(f"- [{file}]({file})" for file in there) + "\n"
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    return f"# {name}\n\n{block(text.rstrip(), SHOWN.get(path.suffix, 'text'))}\n"
