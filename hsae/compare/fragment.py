"""Two SAEs' comparison as a piece of HTML, for the page of `hsae compare` and for the server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files
from typing import Literal

from hsae.compare.charts import histogram
from hsae.compare.matched import Lone, Matching, Twin
from hsae.compare.pair import FEW, Comparison
from hsae.errors import visible
from hsae.figures import NONE, fraction, percent

STYLE = files("hsae.compare").joinpath("compare.css").read_text(encoding="utf-8")
"""the style of everything inside `class="compare"`; light and dark"""

Link = Callable[[Literal["a", "b"], int], str]
"""the address of a side's latent; empty: none"""


def no_link(side: Literal["a", "b"], latent: int) -> str:
    """No address for any latent."""
    return ""


def fragment(comparison: Comparison, link: Link = no_link) -> str:
    """A `<section class="compare">`: numbers, histograms, and the latents most alike and most unique.

    Args:
        comparison: of two SAEs; their names may hold anything.
        link: where a latent can be looked at.
    """
    a, b = words(comparison.a), words(comparison.b)
    facts = (
        f"{comparison.size_a - comparison.dead_a:,} of {comparison.size_a:,} latents of {a} and "
        f"{comparison.size_b - comparison.dead_b:,} of {comparison.size_b:,} of {b} fire on the {comparison.tokens:,} "
        f"tokens; the others are not matched. Shared: matched, at a similarity above {comparison.threshold:g}. By "
        f"correlation only latents that fire {FEW} times or more are matched."
    )
    same = "No latent is matched by both measures."
    if comparison.both:
        same = (
            f"Of {comparison.both:,} latents that are matched by both measures, {comparison.same:,} "
            f"({percent(comparison.same / comparison.both)}) get the same partner by both."
        )
    for m in (comparison.cosine, comparison.correlation):
        if m.same_number:
            same += f" {m.same_number:,} of the {m.found.shared:,} pairs shared by {m.measure} have one number in both."
    if comparison.cosine.same_number or comparison.correlation.same_number:
        same += (
            " SAEs of one seed may start from the same rows, so these may be alike from the start, and not by what "
            "they learnt."
        )
    parts = [f'<section class="compare"><h3>{a} ↔ {b}</h3><p>{facts}</p>', _numbers(comparison)]
    parts.append(f"<p>{same}</p>")
    parts += [_measure(matching, link) for matching in (comparison.cosine, comparison.correlation)]
    return "".join(parts) + "</section>"


def words(text: str) -> str:
    """Any text, safe in HTML."""
    return escape(visible(text))


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """A table that scrolls by itself where it is too wide. Cells are HTML; all but the first column are numbers."""
    head = "".join(f"<th>{cell}</th>" for cell in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _numbers(comparison: Comparison) -> str:
    heads = ("", "mean", "median", "5–95%", "shared, of the first", "of the second")
    heads = (*heads, "unique to the first", "to the second", "nearest, first → second", "second → first")
    rows = []
    for m in (comparison.cosine, comparison.correlation):
        for name, of in ((f"{m.measure}, {len(m.pairs):,} pairs", m.found), ("by chance", m.chance)):
            spread = f"{fraction(of.quantiles[0])} … {fraction(of.quantiles[-1])}" if of.quantiles else NONE
            shares = [percent(of.shared / count) if count else NONE for count in (m.latents_a, m.latents_b)]
            unique = [f"{count - of.shared:,}" for count in (m.latents_a, m.latents_b)]
            nearest = [fraction(of.nearest_a), fraction(of.nearest_b)]
            rows.append([name, fraction(of.mean), fraction(of.median), spread, *shares, *unique, *nearest])
    return table(heads, rows, "numbers")


def _measure(matching: Matching, link: Link) -> str:
    if not matching.pairs:
        return f"<h4>By {matching.measure}</h4><p>Nothing to match.</p>"
    alike = [[f"{_latent('a', twin.a, link)} ↔ {_latent('b', twin.b, link)}", *_shown(twin)] for twin in matching.alike]
    inexact = "" if matching.exact else " So many latents are matched among the nearest candidates of each."
    return (
        f'<h4>By {matching.measure}</h4><p class="key"><i class="bar"></i> matched pairs '
        f'<i class="chance"></i> by chance.{inexact}</p><figure>{histogram(matching)}</figure><div class="beside">'
        + _list("Most alike", ("latents", matching.measure, "first fires", "second fires"), alike)
        + _list("Most unique to the first", ("latent", "nearest", "", "fires"), _lone(matching.lone_a, "a", "b", link))
        + _list("Most unique to the second", ("latent", "nearest", "", "fires"), _lone(matching.lone_b, "b", "a", link))
        + "</div>"
    )


def _shown(twin: Twin) -> tuple[str, str, str]:
    return fraction(twin.similarity), percent(twin.rate_a), percent(twin.rate_b)


def _lone(lone: Sequence[Lone], own: Literal["a", "b"], other: Literal["a", "b"], link: Link) -> list[list[str]]:
    return [
        [_latent(own, one.latent, link), _latent(other, one.nearest, link), fraction(one.similarity), percent(one.rate)]
        for one in lone
    ]


def _list(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return f"<div><h5>{title}</h5>{table(heads, rows) if rows else '<p>None.</p>'}</div>"


def _latent(side: Literal["a", "b"], latent: int, link: Link) -> str:
    address = link(side, latent)
    return f'<a href="{escape(address)}">{latent}</a>' if address else str(latent)
