"""What is shown of explanations: how scores are distributed, by setup and by firing rate; the best and the worst."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from rich.console import RenderableType
from rich.text import Text

from hsae.errors import visible
from hsae.figures import NONE, fraction, percent
from hsae.inspect.tables import open_table
from hsae.interpret.examples import DENSE, NEVER
from hsae.interpret.results import SCORES, Explanation, Score
from hsae.intervals import estimate

if TYPE_CHECKING:
    from hsae.interpret.job import Explained

BESIDE = {"detection": ("token", "shuffled"), "fuzzing": ("token_fuzzing", "shuffled_fuzzing")}
"""the baseline's and the control's scores, of the tasks that have them"""
TASKS = ("detection", "fuzzing", "within", "top")
ABOVE = (0.7, 0.8, 0.9)
RATES = (0.0, 1e-4, 1e-3, 1e-2, 1.0)
"""ends of the bands of firing rates"""
SHOWN = 5
"""best explained latents, and worst"""


def document(explained: Sequence[Explained]) -> dict[str, Any]:
    """Everything as plain data."""
    first = explained[0]
    return {
        "run": first.subject.record.name,
        "store": first.subject.store,
        "hook": first.subject.hook,
        "settings": dict(first.book.settings),
        "setups": [
            {
                "setup": one.subject.row.setup,
                "seed": one.subject.row.seed,
                "counts": counts(one),
                "distinct": distinct(one),
                "firings_scored": firings(one),
                **{task: summary(one, task) for task in SCORES},
                "quantiles": quantiles(one),
                "bands": bands(one),
                "dense_within": dense(one).tolist(),
                "explanations": [asdict(one.book.explanations[latent]) for latent in sorted(one.book.explanations)],
            }
            for one in explained
        ],
    }


def counts(one: Explained) -> dict[str, int]:
    """How many latents were scored, and how many not, and why."""
    why = Counter(e.why.partition(":")[0] for e in one.book.explanations.values() if not e.detection)
    return {"scored": len(scored(one))} | dict(sorted(why.items()))


def scored(one: Explained) -> list[Explanation]:
    """The explanations that have a score."""
    return [e for e in one.book.explanations.values() if e.detection]


def distinct(one: Explained) -> int:
    """How many different explanations the scored latents have."""
    return len({e.text for e in scored(one)})


def firings(one: Explained) -> float:
    """The share of all firings that is of latents with a score."""
    total = sum(e.rate for e in one.book.explanations.values())
    return sum(e.rate for e in scored(one)) / total if total else 0.0


def summary(one: Explained, task: str) -> dict[str, float | int | None] | None:
    """How a task's scores are distributed over latents; None where none was scored."""
    values = _values(scored(one), task)
    if not len(values):
        return None
    mean = estimate(values.tolist())
    q1, median, q3 = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return {
        "latents": len(values),
        "mean": mean.mean if mean else None,
        "half": mean.half if mean else None,
        "median": median,
        "q1": q1,
        "q3": q3,
        **{f"above_{bound:g}": float((values > bound).mean()) for bound in ABOVE},
    }


def quantiles(one: Explained) -> list[float]:
    """The share of activating contexts that detection finds, by fifths of activation, the strongest first."""
    every = [e.quantiles for e in scored(one) if e.quantiles]
    found = np.array(every, np.int64).sum(0) if every else np.zeros((0, 2), np.int64)
    return [float(a / b) if b else math.nan for a, b in found]


def bands(one: Explained) -> list[dict[str, float | int | None]]:
    """Scores by firing rate: median, mean and half the mean's 95% interval."""
    rows = []
    for low, high in pairwise(RATES):
        inside = [e for e in scored(one) if low < e.rate <= high]
        row: dict[str, float | int | None] = {"above": low, "to": high, "latents": len(inside)}
        for task in ("detection", "fuzzing", "token", "token_fuzzing"):
            values = _values(inside, task)
            mean = estimate(values.tolist())
            row[task] = float(np.median(values)) if len(values) else None
            row[f"{task}_mean"], row[f"{task}_half"] = (mean.mean, mean.half) if mean else (None, None)
        rows.append(row)
    return rows


def dense(one: Explained) -> Float[np.ndarray, "latent"]:
    """The scores of the task within, of the latents that fire in nearly every window."""
    return _values((e for e in one.book.explanations.values() if e.why == DENSE), "within")


def _values(explanations: Iterable[Explanation], task: str) -> Float[np.ndarray, "latent"]:
    found: list[Score | None] = [getattr(e, task) for e in explanations]
    return np.array([s.value for s in found if s])


def draw(explained: Sequence[Explained]) -> Iterator[RenderableType]:
    """Everything to print, part by part."""
    first, settings = explained[0].subject, explained[0].book.settings
    by = "rules from statistics" if settings["explainer"] == "local" else f"{settings['explainer']} {settings['model']}"
    yield Text(visible(f"run {first.record.name} · explained by {by}"), style="bold")
    yield Text(visible(f"store {first.store} · {first.hook}"), style="dim")
    yield _counts(explained)
    yield Text(
        "distinct: different explanations of scored latents; firings: their share of all firings; silent: never fire; "
        "few: too few contexts; "
        "dense: fire in nearly every window.",
        style="dim",
    )
    yield ""
    yield _scores(explained)
    yield Text(
        "Balanced accuracy on held-out contexts; chance is .50. detection: does the latent fire in this context? "
        "fuzzing: are the marked tokens its own, or random ones of a context without it? within: or random ones of its "
        "own contexts? top: detection of its strongest contexts. ±: half the 95% interval of the mean over latents. "
        "base: the mean by the most frequent token alone; ctrl: by another latent's explanation.",
        style="dim",
    )
    yield ""
    yield _bands(explained)
    yield Text(
        "Median of detection/fuzzing by firing rate, and how many latents; dense: of within, all that they have.",
        style="dim",
    )
    for one in explained:
        yield from _extremes(one)


def _counts(explained: Sequence[Explained]) -> RenderableType:
    heads = ("latents", "scored", "distinct", "firings", "silent", "few", "dense", "other")
    table = open_table(("setup", False), ("seed", True), *((head, True) for head in heads))
    for one in explained:
        found = counts(one)
        number, *known = (found.pop(name, 0) for name in ("scored", NEVER, "too few contexts", DENSE))
        cells = [f"{n:,}" for n in (len(one.book.explanations), number, *known, sum(found.values()))]
        cells[2:2] = [f"{distinct(one):,}", percent(firings(one))]
        table.add_row(Text(visible(one.subject.row.setup)), str(one.subject.row.seed), *cells)
    return table


def _scores(explained: Sequence[Explained]) -> RenderableType:
    heads = ("median", "quartiles", *(f">{_two(bound)[:2]}" for bound in ABOVE), "mean", "±", "base", "ctrl")
    table = open_table(("setup", False), ("task", False), *((head, True) for head in heads))
    table.columns[0].max_width = 18  # so that the numbers have the room they need
    for one in explained:
        for task in TASKS:
            if not (found := summary(one, task)):
                continue
            beside = [summary(one, name) for name in BESIDE.get(task, ())]
            table.add_row(
                Text(visible(one.subject.row.setup if task == TASKS[0] else "")),
                task,
                _two(found["median"]),
                f"{_two(found['q1'])}-{_two(found['q3'])}",
                *(f"{found[f'above_{bound:g}']:.0%}" for bound in ABOVE),
                fraction(found["mean"]),
                fraction(found["half"]),
                *(_two(other["mean"] if other else None) for other in beside),
            )
    return table


def _bands(explained: Sequence[Explained]) -> RenderableType:
    heads = [*(f"to {100 * high:g}%" for high in RATES[1:-1]), f"above {100 * RATES[-2]:g}%", "dense"]
    table = open_table(("setup", False), *((head, True) for head in heads))
    table.columns[0].max_width = 12
    for one in explained:
        cells = []
        for band in bands(one):
            both = f"{_two(band['detection'])}/{_two(band['fuzzing'])} {band['latents']:,}"
            cells.append(both if band["latents"] else NONE)
        everywhere = dense(one)
        cells.append(f"{_two(float(np.median(everywhere)))} {len(everywhere):,}" if len(everywhere) else NONE)
        table.add_row(Text(visible(one.subject.row.setup)), *cells)
    return table


def _two(value: float | None) -> str:
    """Two decimals, without the zero before them."""
    return NONE if value is None else f"{value:.2f}".removeprefix("0")


def _extremes(one: Explained) -> Iterator[RenderableType]:
    order = sorted(scored(one), key=lambda e: (e.low or 0.0, e.rate), reverse=True)
    few = min(SHOWN, len(order) // 2)
    for name, some in (("best", order[:few]), ("worst", order[len(order) - few :])):
        if not some:
            continue
        yield ""
        yield Text(visible(f"{one.subject.row.setup}: {name} explained, by the lower end of detection's 95% interval"))
        table = open_table(
            ("latent", True), ("score", True), ("interval", True), ("fires", True), ("explanation", False)
        )
        table.columns[-1].no_wrap = False
        table.columns[-1].overflow = "fold"
        for e in some:
            cells = (f"{e.latent:,}", _two(e.score), f"{_two(e.low)}-{_two(e.high)}", percent(e.rate))
            table.add_row(*cells, Text(visible(e.text)))
        yield table
