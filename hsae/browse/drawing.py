"""One latent as lines of text, some of them links to other latents. Nothing is read as markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.style import Style
from rich.text import Text
from textual.strip import Strip

from hsae.browse.catalogue import Catalogue, Stretch
from hsae.errors import visible
from hsae.evidence.latent import TOP, LatentEvidence, Logit
from hsae.figures import figure, fraction, percent
from hsae.inspect.ink import Ink, histogram, keyword_line

TOKENS = 8
"""tokens in the table of those that a latent fires on"""
WIDE = 88
"""cells from which on blocks stand side by side"""
GAP = 3
"""cells between them"""


@dataclass(frozen=True)
class Line:
    """A line of text. `latent`: where it leads, if it is a link."""

    text: Text
    latent: int | None = None


@dataclass(frozen=True)
class Link:
    """The characters `start … end` of a line lead to a latent."""

    line: int
    start: int
    end: int
    latent: int


@dataclass(frozen=True)
class Page:
    """What there is to say of a latent, and its links in reading order."""

    lines: tuple[Text, ...]
    links: tuple[Link, ...]


def shown_token(text: str) -> str:
    """A token by itself: its spaces can be seen."""
    return visible(text).replace(" ", "␣")


def context_line(context: Stretch, width: int, ink: Ink) -> Text:
    """A context in so many cells, its peak two fifths in; nothing where there is no room for it and its marks."""
    if width < 6:
        return Text()
    before = width * 2 // 5
    return keyword_line(context.text, context.strengths, context.peak, before, width - before, ink)


def fit(text: Text, width: int, right: bool = False) -> Text:
    """A text in exactly so many cells."""
    text = text.copy()
    text.truncate(max(width, 0), overflow="ellipsis")
    room = max(width - text.cell_len, 0)
    return Text(" " * room).append_text(text) if right else text.append(" " * room)


def strip(text: Text, width: int, style: Style, sought: str, console: Console) -> Strip:
    """A line of the screen.

    Args:
        text: what stands on it.
        width: its cells.
        style: over all of it.
        sought: is underlined wherever it stands; upper and lower case are the same.
        console: what knows the styles by name.
    """
    line = text.copy()
    line.stylize_before(line.style)  # `render` leaves out the text's own
    if sought:
        for match in re.finditer(re.escape(sought), line.plain, re.IGNORECASE):
            line.stylize("underline", *match.span())
    return Strip(line.render(console), line.cell_len).adjust_cell_length(width).apply_style(style)


def page(catalogue: Catalogue, latent: int, ink: Ink, width: int, spread: bool, note: str = "") -> Page:
    """All about one latent.

    Args:
        catalogue: the latents.
        latent: which of them.
        ink: how strength is shown.
        width: cells in a line.
        spread: show contexts from all of its range, instead of the strongest.
        note: words beside its number.
    """
    evidence = catalogue.evidence(latent)
    head = list(_head(catalogue, evidence, width, note))
    if not evidence.firings:
        head.append(Line(Text("It never fires on this store.")))
        return _assemble([[head], [_near(catalogue, evidence, ink, width)]], width)
    side = (width - GAP) // 2 if width >= WIDE else width
    logits = list(_logits(catalogue, evidence, width))
    blocks = [
        [head],
        [list(_contexts(catalogue, evidence, ink, width, spread))],
        [list(_tokens(catalogue, evidence, side)), list(_histogram(evidence, side))],
        [logits] if logits else [],
        [list(_coactive(catalogue, evidence, ink, side)), _near(catalogue, evidence, ink, side)],
    ]
    return _assemble(blocks, width)


def _assemble(rows: Iterable[list[list[Line]]], width: int) -> Page:
    """Rows of blocks: side by side where there is the width for it, else one under another."""
    lines: list[Text] = []
    links: list[Link] = []
    for blocks in rows:
        blocks = [block for block in blocks if block]
        if len(blocks) < 2 or width < WIDE:
            for block in blocks:
                lines += [Text()] if lines else []
                for line in block:
                    if line.latent is not None:
                        links.append(Link(len(lines), 0, len(line.text), line.latent))
                    lines.append(line.text)
            continue
        lines.append(Text())
        side, first = (width - GAP) // 2, len(lines)
        lines += [Text() for _ in range(max(map(len, blocks)))]
        for column, block in enumerate(blocks):
            for i, whole in enumerate(lines[first:]):
                line = block[i] if i < len(block) else Line(Text())
                if column:
                    whole.append(" " * GAP)
                start = len(whole)
                if line.latent is not None:
                    links.append(Link(first + i, start, start + len(line.text), line.latent))
                whole.append_text(fit(line.text, side))
    return Page(tuple(lines), tuple(links))


def _title(words: str, note: str = "", width: int = 1000) -> Line:
    return Line(fit(Text.assemble((words, "bold"), (f"  {note}" if note else "", "dim")), width))


def _head(catalogue: Catalogue, evidence: LatentEvidence, width: int, note: str) -> Iterator[Line]:
    title = Text.assemble((f"latent {evidence.latent}", "bold"), (f" of {catalogue.latents:,}", "dim"))
    explanation = catalogue.explanations.get(evidence.latent)
    if explanation is not None and explanation.detection is not None:
        score = explanation.detection
        title.append(f"  score {fraction(score.value)} ({fraction(score.low)}–{fraction(score.high)})", "dim")
    title.append(f"  {note}" if note else "", "dim")
    yield Line(fit(title, width))
    if explanation is not None:
        for words in _wrapped(visible(explanation.text).split(" "), width):
            yield Line(Text(words, "italic"))
    if evidence.firings:
        same = catalogue.index.selectivity[evidence.latent]
        facts = [
            f"fires on {percent(evidence.rate)} ({evidence.firings:,})",
            f"mean {figure(evidence.mean)}",
            f"max {figure(evidence.maximum)}",
            f"same {TOP * same:.0f}/{TOP}" if same else "",
        ]
        for words in _wrapped([fact for fact in facts if fact], width, " · "):
            yield Line(Text(words))


def _wrapped(words: Iterable[str], width: int, between: str = " ") -> Iterator[str]:
    """Words in lines of so many characters; a longer word is cut off."""
    line = ""
    for word in words:
        longer = f"{line}{between}{word}" if line else word
        if line and Text(longer).cell_len > width:
            yield line
            longer = word
        line = longer
    yield line


def _contexts(catalogue: Catalogue, evidence: LatentEvidence, ink: Ink, width: int, spread: bool) -> Iterator[Line]:
    def lines(contexts: Iterable[Stretch]) -> Iterator[Line]:
        for context in contexts:
            text = Text(f"{figure(context.activation):>6}  ")
            yield Line(text.append_text(context_line(context, width - len(text), ink)))

    if not spread:
        yield _title("Strongest contexts", "each from another sequence", width)
        yield from lines(catalogue.contexts(evidence))
        return
    parts = evidence.quantiles()
    yield _title("Contexts from all of its range", "drawn evenly from its firings", width)
    for number, part in enumerate(parts, start=1):
        name = "strongest" if number == 1 else "weakest" if number == len(parts) else f"{number} of {len(parts)}"
        yield Line(Text(f"{name} · from {figure(part[0].activation)} to {figure(part[-1].activation)}", "dim"))
        yield from lines(catalogue.stretch(context, evidence.maximum) for context in part)


def _tokens(catalogue: Catalogue, evidence: LatentEvidence, width: int) -> Iterator[Line]:
    yield _title("Tokens it fires on most", "", width)
    room = min(max(width - 34, 6), 30)
    heads = "firings", "of its uses", "activation"
    yield Line(fit(Text(f"{'token':{room}}{heads[0]:>10}{heads[1]:>12}{heads[2]:>12}", "dim"), width))
    for use in evidence.tokens[:TOKENS]:
        line = fit(Text(shown_token(catalogue.token(use.token))), room)
        line.append(f"{use.firings:>10,}{percent(use.firings / max(use.occurrences, 1)):>12}{percent(use.mass):>12}")
        yield Line(fit(line, width))


def _histogram(evidence: LatentEvidence, width: int) -> Iterator[Line]:
    bins = evidence.histogram
    yield _title("Activation where it fires", f"tokens in bins of {figure(bins.width)}", width)
    for text in histogram(evidence, width):
        yield Line(text)


def _logits(catalogue: Catalogue, evidence: LatentEvidence, width: int) -> Iterator[Line]:
    def tokens(name: str, logits: tuple[Logit, ...]) -> Iterator[Line]:
        words = [f"{shown_token(catalogue.token(x.token))[:20]} {x.logit:+.2f}" for x in logits]
        for number, line in enumerate(_wrapped(words, width - 12, "  ")):
            yield Line(fit(Text.assemble((f"{name if not number else '':12}", "dim"), line), width))

    if evidence.promoted:
        yield _title("Logit lens", "what its direction adds to the next token's logit", width)
        yield from tokens("promotes", evidence.promoted)
        yield from tokens("suppresses", evidence.suppressed)


def _coactive(catalogue: Catalogue, evidence: LatentEvidence, ink: Ink, width: int) -> Iterator[Line]:
    if evidence.coactive:
        yield _title("Fires together with", "correlation, share of its firings", width)
        for other in evidence.coactive:
            figures = f"{other.correlation:+.2f} {percent(other.share):>6}"
            yield _link(catalogue, other.latent, figures, ink, width)


def _near(catalogue: Catalogue, evidence: LatentEvidence, ink: Ink, width: int) -> list[Line]:
    if not evidence.near:
        return []
    links = [_link(catalogue, other.latent, f"{other.cosine:+.2f}", ink, width) for other in evidence.near]
    return [_title("Nearest directions", "cosine", width), *links]


def _link(catalogue: Catalogue, latent: int, figures: str, ink: Ink, width: int) -> Line:
    """Another latent: its number, how it is related, and what it is about."""
    line = Text.assemble(fit(Text(str(latent), "underline"), 6, right=True), f" {figures}  ")
    room = width - line.cell_len
    explanation, glance = catalogue.explanations.get(latent), catalogue.glance(latent)
    if explanation is not None:
        line.append_text(fit(Text(visible(explanation.text)), room))
    elif glance is not None:
        line.append_text(context_line(glance, room, ink))
    else:
        line.append("never fires", "dim")
    return Line(fit(line, width), latent)
