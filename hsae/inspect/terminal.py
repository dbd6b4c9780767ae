"""The terminal's face of the evidence: plain data in, rich renderables out. Nothing is read as markup."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hsae.errors import visible
from hsae.evidence.latent import Context
from hsae.figures import NONE, figure, fraction, percent
from hsae.inspect.ink import Ink, histogram, keyword_line
from hsae.inspect.tables import open_table, run_tables
from hsae.inspect.view import Glance, Head, LatentView, Overview
from hsae.record import Record

EACH, USES, RELATED = 2, 8, 8
"""contexts of each fifth of the firings, tokens, and latents or tokens like it"""


def run_table(run: Record) -> Group:
    """A run's tables: a line for each setup and seed, what they must beat, and what was measured over which tokens."""
    result = run.result
    return run_tables(result.rows, result.baselines, result.held_out, result.dead_window)


def draw_overview(shown: Overview, ink: Ink, width: int, command: str) -> Iterator[RenderableType]:
    """Everything to print of a run, part by part.

    Args:
        shown: what to draw.
        ink: how strength is shown.
        width: cells in a line.
        command: the words that show this again, to name what to do next.
    """
    head = shown.head
    yield from _headline(head, f"run {head.run}")
    yield run_tables(shown.table, shown.baselines, shown.held_out, shown.dead_window)
    if not shown.most_active:
        diverged = any(row.diverged for row in shown.table if (row.setup, row.seed) == (head.setup, head.seed))
        reason = "diverged: it has no latents to show" if diverged else "has no latent that fires on this store"
        yield Text(visible(f"{head.setup}, seed {head.seed}, {reason}"))
        return
    yield Text.assemble("\n", (f"Latents of {visible(head.setup)}, seed {head.seed}", "bold"), _others(head))
    yield Text("Most active", style="bold")
    yield _glances(shown.most_active, ink, width)
    if shown.most_selective:
        yield Text("\nMost selective", style="bold")
        yield _glances(shown.most_selective, ink, width)
    yield Text("same: how many of the 16 strongest contexts peak on one token", style="dim")
    yield _dead(shown)
    latent = (shown.most_selective or shown.most_active)[0].latent
    yield Text(f"next: {visible(command)} --latent {latent}", style="dim")


def _headline(head: Head, title: str) -> Iterator[Text]:
    of = f" of {head.positions:,}" if head.rows < head.positions else ""
    scale = "no normalisation" if head.scale == 1 else f"scaled by {head.scale:.4g}"
    facts = [
        f"store {head.store}",
        head.hook,
        f"{head.rows:,}{of} tokens",
        scale + (", folded into the weights" if head.folded and head.scale != 1 else ""),
    ]
    yield Text(visible(title), style="bold")
    yield Text(visible(" · ".join(facts)), style="dim")
    if head.origin:
        yield Text(visible(head.origin), style="dim")
    for warning in head.warnings:
        yield Text(f"WARNING: {visible(warning)}", style="bold yellow")


def _others(head: Head) -> str:
    setups = ", ".join(name for name in head.setups if name != head.setup)
    seeds = ", ".join(str(seed) for seed in head.seeds if seed != head.seed)
    others = [f"{flag} {names}" for flag, names in (("--setup", setups), ("--seed", seeds)) if names]
    return visible(f"  (others: {'; '.join(others)})") if others else ""


def _glances(glances: Sequence[Glance], ink: Ink, width: int) -> Table:
    table = open_table(("latent", True), ("fires", True), ("max", True), ("same", True), ("strongest contexts", False))
    for column, least in zip(table.columns, (6, 6, 7, 4), strict=False):
        column.min_width = least  # so that the two lists stand in the same columns
    room = max(width - 32, 20)
    for glance in glances:
        table.add_row(
            str(glance.latent),
            percent(glance.rate),
            figure(glance.maximum),
            f"{16 * glance.selectivity:.0f}" if glance.selectivity else NONE,
            _snippets(glance, ink, room),
        )
    return table


def _snippets(glance: Glance, ink: Ink, room: int) -> Text:
    count = max(1, min(len(glance.contexts), room // 16))
    each = room // count - 3
    line = Text(no_wrap=True)
    for context in glance.contexts[:count]:
        strengths = [0.0] * len(context.text)
        strengths[context.peak] = context.activation / glance.maximum
        line.append_text(keyword_line(context.text, strengths, context.peak, each * 2 // 3, each - each * 2 // 3, ink))
        line.append("   ")
    line.rstrip()
    return line


def _dead(shown: Overview) -> Text:
    count, names = shown.dead_latents, ", ".join(map(str, shown.dead))
    more = ", …" if count > len(shown.dead) else ""
    text = Text.assemble(("\nDead", "bold"), f": {count:,} of {shown.head.latents:,} latents never fire on this store")
    return text.append(f": {names}{more}" if count else "")


def draw_latent(shown: LatentView, ink: Ink, width: int, contexts: int, command: str) -> Iterator[RenderableType]:
    """Everything to print of a latent, part by part.

    Args:
        shown: what to draw.
        ink: how strength is shown.
        width: cells in a line.
        contexts: the most strongest contexts to print.
        command: the words that show the overview.
    """
    head, found = shown.head, shown.evidence
    title = f"latent {found.latent} of {head.latents:,} · {head.setup}, seed {head.seed} · run {head.run}"
    yield from _headline(head, title)
    if not found.firings:
        yield Text(f"\nIt never fires on this store. For latents that do: {visible(command)}")
        return
    yield Text(
        f"\nfires on {percent(found.rate)} of tokens ({found.firings:,}) · "
        f"mean {figure(found.mean)} where it fires · maximum {figure(found.maximum)}"
    )
    if shown.explanation is not None and shown.explanation.text:
        yield Text.assemble((visible(shown.explanation.text), "bold"), (_score(shown), "dim"))
    yield Text.assemble(
        "\n", ("Activation where it fires", "bold"), (f"  (tokens in bins of {figure(found.histogram.width)})", "dim")
    )
    yield from histogram(found, width)
    yield Text("\nTop contexts, each from another sequence", style="bold")
    yield from _context_lines(shown, list(zip(found.top, shown.top, strict=True))[:contexts], ink, width)
    yield Text.assemble(
        "\n", ("Drawn evenly from all its firings", "bold"), (f"  ({EACH} of each fifth of them)", "dim")
    )
    text = iter(shown.samples)
    for part in found.quantiles():
        pairs = [(context, next(text)) for context in part]
        yield from _context_lines(shown, pairs[:EACH], ink, width)
    yield Text("\nTokens it fires on most", style="bold")
    yield _tokens(shown)
    yield from _relations(shown, width)


def _score(shown: LatentView) -> str:
    explanation = shown.explanation
    if explanation is None or explanation.score is None:
        return ""
    return f"  (detection {fraction(explanation.score)})"


def _context_lines(
    shown: LatentView, pairs: Sequence[tuple[Context, tuple[str, ...]]], ink: Ink, width: int
) -> Iterator[Text]:
    room = width - 9
    before = room * 11 // 20
    for context, text in pairs:
        strengths = [value / shown.evidence.maximum for value in context.activations]
        line = Text(f"{figure(context.activation):>7}  ", no_wrap=True)
        line.append_text(keyword_line(text, strengths, context.peak, before, room - before, ink))
        yield line


def _relations(shown: LatentView, width: int) -> Iterator[Text]:
    """What its decoder direction does, and which latents are like it."""
    found = shown.evidence
    logits = ((found.promoted, shown.promoted), (found.suppressed, shown.suppressed))
    promoted, suppressed = (
        [f"{_spaced(piece)} {item.logit:+.2f}" for item, piece in zip(*both, strict=True)] for both in logits
    )
    missing = [f"no logit lens: {visible(shown.logits)}"] if shown.logits else []
    yield Text.assemble(
        "\n", ("Its decoder direction and its like", "bold"), ("  (logits; cosine; correlation of firing)", "dim")
    )
    for name, words in (
        ("promotes", promoted or missing),
        ("suppresses", suppressed or missing),
        ("nearest", [f"{other.latent} {other.cosine:.2f}" for other in found.near]),
        ("co-active", [f"{other.latent} {other.correlation:.2f}" for other in found.coactive]),
    ):
        line = Text(f"{name:<12}", style="bold", no_wrap=True, overflow="ellipsis")
        for word in words[:RELATED] or [NONE]:
            if line.cell_len + cell_len(word) > width and line.cell_len > 12:
                yield line
                line = Text(" " * 12, no_wrap=True, overflow="ellipsis")
            line.append(f"{word}   ", "not bold")
        yield line


def _spaced(piece: str) -> str:
    return visible(piece[:100]).replace(" ", "␣")


def _tokens(shown: LatentView) -> Table:
    table = open_table(
        ("token", False), ("id", True), ("firings", True), ("of its occurrences", True), ("share of activation", True)
    )
    table.columns[0].max_width = 30
    for use, text in list(zip(shown.evidence.tokens, shown.tokens, strict=True))[:USES]:
        table.add_row(
            Text(_spaced(text)),
            str(use.token),
            f"{use.firings:,}",
            percent(use.firings / max(use.occurrences, 1)),
            percent(use.mass),
        )
    return table
