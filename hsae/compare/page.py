"""The page of `hsae compare --html`: one file, no network; a sortable table, the Pareto plot, every pair."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from importlib.resources import files

from hsae.compare.charts import Point, pareto
from hsae.compare.fragment import STYLE, fragment, table, words
from hsae.compare.pair import Comparison
from hsae.compare.report import Entry, Report, front
from hsae.compare.wording import caption, pairs_caption, same_rows
from hsae.figures import NONE, fraction, percent, scientific, short

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""the page loads nothing, whatever is in it"""


def page(report: Report) -> str:
    """The whole page."""
    title = words(f"SAEs compared on {report.store}")
    keys = {entry.label: entry.key for entry in report.entries}
    parts = [f"<h1>{title}</h1><p>{words(report.hook)}</p>"]
    parts += [f'<p class="note">note: {words(note)}</p>' for note in report.notes]
    parts += [_metrics(report), f"<p>{words(caption(report))} Click a heading to sort.</p>", _plots(report)]
    if report.pairs:
        parts += ["<h2>Latents matched one to one</h2>", _pairs(report.pairs, keys)]
        parts.append(f"<p>{words(pairs_caption(report))}</p>")
        parts += [f'<p class="note">note: {words(line)}</p>' for line in filter(None, [same_rows(report.pairs, keys)])]
        parts += [f'<div id="pair-{i}">{fragment(pair)}</div>' for i, pair in enumerate(report.pairs)]
    script = files("hsae.compare").joinpath("sort.js").read_text(encoding="utf-8")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">'
        f"<style>{STYLE}html, body {{ margin: 0; }} body {{ padding: 1rem; max-width: 76rem; margin: 0 auto; }}</style>"
        f'</head><body class="compare">{"".join(parts)}<script>{script}</script></body></html>\n'
    )


Column = tuple[str, Callable[[Entry], float | None], Callable[[float], str]]


def _metrics(report: Report) -> str:
    columns: list[Column] = [
        ("MSE", lambda e: e.figures.mse, scientific),
        ("EVR", lambda e: e.figures.evr, fraction),
        ("pooled EVR", lambda e: e.figures.evr_pooled, fraction),
        ("L1", lambda e: e.figures.l1, scientific),
        ("L0", lambda e: e.figures.l0, lambda v: f"{v:.1f}"),
        ("latents", lambda e: e.latents, lambda v: f"{v:,}"),
        ("dictionary", lambda e: e.figures.dictionary, lambda v: f"{v:,}"),
        ("dead", lambda e: e.figures.dead, lambda v: f"{v:,}"),
        ("tokens/s", lambda e: e.figures.tokens_per_second, short),
        ("loss recovered", lambda e: e.figures.recovered, fraction),
    ]
    columns = [column for column in columns if any(column[1](entry) is not None for entry in report.entries)]
    heads = "".join(f"<th>{name}</th>" for name in ("", "SAE", "rule", *(name for name, _, _ in columns)))
    rows = []
    for entry in report.entries:
        key, rule = entry.key + "*" * entry.front, " / ".join(filter(None, [entry.encoder, entry.decoder]))
        cells = [(key, key), (words(entry.label), entry.label), (words(f"{rule}, {entry.variant}"), rule)]
        for _, value, form in columns:
            number = value(entry)
            cells.append((NONE, "") if number is None else (form(number), repr(number)))
        rows.append("".join(f'<td data-value="{words(value)}">{shown}</td>' for shown, value in cells))
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        '<div class="wide"><table class="sortable names"><thead><tr>'
        f"{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _plots(report: Report) -> str:
    figures = []
    for title, worth in (
        ("pooled EVR", lambda e: e.figures.evr_pooled),
        ("loss recovered", lambda e: e.figures.recovered),
    ):
        best = front([(e.figures.l0, worth(e)) for e in report.entries])
        points = [Point(e.key, e.label, e.figures.l0, worth(e), on) for e, on in zip(report.entries, best, strict=True)]
        if drawn := pareto(points, title):
            figures.append(f"<figure><h5>{title} against L0; filled: the Pareto front</h5>{drawn}</figure>")
    return f'<div class="beside plots">{"".join(figures)}</div>'


def _pairs(pairs: tuple[Comparison, ...], keys: dict[str, str]) -> str:
    shared = ("shared, of the first", "of the second")
    heads = ("pair", "cosine", "chance", *shared, "correlation", "chance", *shared, "same partner")
    rows = []
    for i, pair in enumerate(pairs):
        cells = [f'<a href="#pair-{i}">{keys[pair.a]}–{keys[pair.b]}</a>']
        for m in (pair.cosine, pair.correlation):
            cells += [fraction(m.found.mean), fraction(m.chance.mean)]
            cells += [percent(m.found.shared / n) if n else NONE for n in (m.latents_a, m.latents_b)]
        rows.append([*cells, f"{pair.same:,} of {pair.both:,}"])
    return table(heads, rows)
