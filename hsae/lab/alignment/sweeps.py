"""Tables of alignment by weight decay: rules and models beside the paper's, activations, classification."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from hsae.figures import NONE
from hsae.intervals import Estimate, estimate
from hsae.lab.alignment import drawing
from hsae.lab.alignment.plan import EXTRA
from hsae.sharing.markdown import table

Found = Mapping[str, Any]
Told = tuple[str, dict[str, Any]]
Student = Mapping[str, Any]
ByRow = dict[str, dict[float, list[Student]]]

# Table 1 of arXiv 2505.18069, means over 10 seeds; None: the weights collapsed.
GAMMAS = (0.0, 5e-5, 5e-4, 5e-3)
PAPER: dict[str, tuple[float | None, ...]] = {
    "MLP, Adam": (-0.02, 0.10, 0.66, None),
    "MLP, SGD": (-0.10, -0.06, 0.17, 0.59),
    "MLP, DFA": (0.45, 0.45, 0.68, 0.87),
    "MLP, DFA, η = .01": (0.45, 0.45, 0.68, 0.87),
    "MLP, random network": (0.00, 0.00, 0.05, 0.50),
    "MLP, random network, redrawn": (0.00, 0.00, 0.05, 0.50),
    "transformer, Adam": (-0.02, 0.50, 0.99, None),
    "transformer, SGD": (0.00, 0.04, 0.47, 0.88),
}
CLOSE, COLLAPSED, SLACK, BUMP = 0.1, 0.1, 0.02, 0.1


def sweep(found: Found, out: Path) -> Told:
    """Table 1."""
    by_row = rows_of(found)
    rows, verdicts = [], []
    for row, cells in by_row.items():
        texts = []
        for gamma, students in cells.items():
            mean = averaged(students)
            collapsed = averaged(students, "norm").mean / averaged(students, "start_norm").mean < COLLAPSED
            texts.append(cell(mean) + (" c" if collapsed else ""))
            if row in PAPER and gamma in GAMMAS:
                paper = PAPER[row][GAMMAS.index(gamma)]
                near = paper is not None and abs(mean.mean - paper) <= max(CLOSE, mean.half or 0)
                agrees = collapsed if paper is None else near and not collapsed
                if row not in EXTRA:
                    verdicts.append((row, gamma, agrees))
                texts[-1] += f" ({'–' if paper is None else two(paper)}) {'yes' if agrees else '**no**'}"
        rows.append([row, *texts, grows(cells)])
    kinds = ("batch_cos", "sample_cos", "step_cos")
    ways = [
        [row, *(" / ".join(two(averaged(s, k).mean) for k in kinds) for s in c.values())] for row, c in by_row.items()
    ]
    agreed = sum(agrees for *_, agrees in verdicts)
    text = f"""## Weight decay: Table 1 of the paper

A1 at the second layer over the last 3 epochs, mean ± 95% interval over seeds ({_seeds(by_row)}); the paper's mean in
brackets, and whether it agrees: it lies in our interval or within {two(CLOSE)} of our mean. "c" and "–": the weights
collapsed (ours: below a tenth of ‖W‖ at the start). **{agreed} of {len(verdicts)} cells agree.** Last column: no mean
is more than {two(SLACK)} below the one before it, and the last is more than that above the first.

The source does not tell the paper's widths, learning rates, loss scale and layer. Ours: 32-128-128-32, tanh, squared
error averaged over outputs, η = .1 for SGD, DFA and the random network, .001 for Adam, whose decay joins the gradient
(AdamW's does not); the transformer has two pre-norm blocks, 4 heads, sequences of 8 tokens, 256 tokens to a batch.
Rows that the paper does not have, beside its nearest and not counted: {", ".join(EXTRA)}.

{table(heads(by_row, "grows with γ"), rows)}

By estimator: A1 / A2 / A1 of the optimiser's step less the decay (which cannot be taken out of coupled Adam's).

{table(heads(by_row), ways)}"""
    keys = (*kinds, "inner", "unrest", "norm", "loss")
    means = {row: {f"{g:g}": {k: averaged(s, k).mean for k in keys} for g, s in c.items()} for row, c in by_row.items()}
    return text, {"agreed": agreed, "of": len(verdicts), "verdicts": verdicts, "means": means}


def classification(found: Found, out: Path) -> Told:
    """The standard classification experiment."""
    by_row = rows_of(found)
    rows = [[row, *(cell(averaged(s)) for s in cells.values()), grows(cells)] for row, cells in by_row.items()]
    rows += [
        [f"{row}: accuracy", *(f"{averaged(s, 'accuracy').mean:.1%}" for s in cells.values()), ""]
        for row, cells in by_row.items()
    ]
    text = f"""## Classification

Cross-entropy, tanh, two hidden layers of 128; the second layer's A1, and the held-out accuracy. Data:
{next(iter(found.values()))["data"]}.
The paper's text has no figures of this experiment, but that alignment grows with γ.

{table(heads(by_row, "grows with γ"), rows)}"""
    return text, {row: {f"{g:g}": [s["batch_cos"] for s in ss] for g, ss in by.items()} for row, by in by_row.items()}


def activations(found: Found, out: Path) -> Told:
    """Activation functions, and alignment over time."""
    by_row = rows_of(found)
    gammas = list(next(iter(by_row.values())))
    shown, lines, bumps = gammas[-2:][0], {}, []
    for row in ("tanh", "relu", "tanh, η = .01", "relu, η = .01"):
        points = zip(*(s["history"] for s in by_row[row][shown]), strict=True)
        lines[row] = line = [[fmean(values) for values in zip(*point, strict=True)] for point in points]
        values, norms = [p[1] for p in line], [p[2] for p in line]
        peak, low = _peak(values)
        bump = min(values[peak] - values[0], values[peak] - low) >= BUMP
        one_way = norms in (sorted(norms), sorted(norms, reverse=True))
        at = f"{two(values[peak])} at step {line[peak][0]:.0f}"
        bumps.append([row, two(values[0]), at, two(low), two(values[-1]), yes(bump), yes(one_way)])
    drawing.over_time(out, "alignment-time", lines)
    rows = [[row, *(cell(averaged(s)) for s in cells.values()), grows(cells)] for row, cells in by_row.items()]
    text = f"""## Activation functions, and the early bump

SGD on the regression (η = .1 where nothing is said), A1. The paper: growth with γ is robust across activations.

{table(heads(by_row, "grows with γ"), rows)}

![alignment over time](alignment-time.svg)

The paper sees an early peak, above all for ReLU at a small learning rate, while ‖W‖ moves one way. Here, at
γ = {shown:g}, a bump is a rise by {two(BUMP)} or more from the start, and then a fall by as much: the peak is where the
greatest fall begins.

{table(["", "start", "peak", "lowest after it", "end", "bump", "‖W‖ moves one way"], bumps)}"""
    return text, {"lines": lines, "bumps": bumps}


def two(value: float) -> str:
    """.12, -.03, 1.00: two decimals; a dash for NaN."""
    if math.isnan(value):
        return NONE
    return f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 0.995 else f"{value:.2f}"


def yes(true: bool) -> str:
    return "yes" if true else "no"


def verdict(true: bool) -> str:
    return "agrees" if true else "does not agree"


def cell(mean: Estimate) -> str:
    return two(mean.mean) + (f" ± {two(mean.half)}" if mean.half is not None else "")


def averaged(students: Iterable[Student], key: str = "batch_cos") -> Estimate:
    """Over seeds; NaN where all of them diverged."""
    return estimate(s[key] for s in students) or Estimate(0, math.nan)


def grows(cells: Mapping[float, list[Student]]) -> str:
    means = [averaged(cells[gamma]).mean for gamma in sorted(cells)]
    return yes(means[-1] > means[0] + SLACK and all(b >= a - SLACK for a, b in itertools.pairwise(means)))


def by_decay(students: Iterable[Student]) -> dict[float, list[Student]]:
    found: dict[float, list[Student]] = {}
    for student in students:
        found.setdefault(student["gamma"], []).append(student)
    return found


def rows_of(found: Found) -> ByRow:
    """Units named `ROW @ γ` or `ROW`, as rows of cells."""
    by_row: ByRow = {}
    for name, result in found.items():
        by_row.setdefault(name.partition(" @ ")[0], {}).update(by_decay(result["students"]))
    return by_row


def heads(by_row: ByRow, last: str = "") -> list[str]:
    return ["", *(f"γ = {gamma:g}" for gamma in next(iter(by_row.values()))), *([last] if last else [])]


def _peak(values: list[float]) -> tuple[int, float]:
    """Where the greatest fall begins, and how low it ends."""
    lowest = [min(values[i:]) for i in range(len(values))]
    peak = max(range(len(values)), key=lambda i: values[i] - lowest[i])
    return peak, lowest[peak]


def _seeds(by_row: ByRow) -> str:
    return " or ".join(map(str, sorted({len(students) for cells in by_row.values() for students in cells.values()})))
