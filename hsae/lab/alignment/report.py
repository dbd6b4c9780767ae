"""What the experiments came to, in words, tables and figures. Every verdict is computed from the numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from hsae.figures import NONE
from hsae.intervals import Estimate, estimate
from hsae.lab.alignment import drawing, saes_report, theory
from hsae.sharing.markdown import table

Found = Mapping[str, Any]
"""what an experiment's units returned, by the names that `plan.units` gives them"""
Told = tuple[str, dict[str, Any]]
"""Markdown, and the numbers in it"""
Student = Mapping[str, Any]
ByRow = dict[str, dict[float, list[Student]]]

# Table 1 of arXiv 2505.18069, means over 10 seeds; None: the weights collapsed.
GAMMAS = (0.0, 5e-5, 5e-4, 5e-3)
PAPER: dict[str, tuple[float | None, ...]] = {
    "MLP, Adam": (-0.02, 0.10, 0.66, None),
    "MLP, SGD": (-0.10, -0.06, 0.17, 0.59),
    "MLP, DFA": (0.45, 0.45, 0.68, 0.87),
    "MLP, random network": (0.00, 0.00, 0.05, 0.50),
    "transformer, Adam": (-0.02, 0.50, 0.99, None),
    "transformer, SGD": (0.00, 0.04, 0.47, 0.88),
}
CLOSE, COLLAPSED, SLACK, BUMP = 0.1, 0.1, 0.02, 0.1


def theorems(found: Found, out: Path) -> Told:
    """Exact identities in float64, and the closed form beside SGD."""
    rows, noise = [], []
    g = torch.Generator().manual_seed(0)
    h_a, signal = (torch.randn(200, n, generator=g).double() for n in (12, 9))
    for gamma in (5e-4, 5e-2, 5.0):
        weak = theory.weak(torch.randn(200, 9, 12, generator=g).double(), h_a, gamma)
        left, right, covariance = theory.strong(signal, h_a, gamma)
        pairs = {
            "weak, any signal": weak,
            "strong, with its covariance": (left, right + covariance),
            "strong, as in the paper": (left, right),
            "cosine at rest, ridge regression": theory.ridge(h_a, signal, gamma),
        }
        rows += [[n, f"{gamma:g}", f"{a:.6g}", f"{b:.6g}", f"{abs(a / b - 1):.0e}"] for n, (a, b) in pairs.items()]
    for result in found.values():
        for (gamma, sigma), predicted, measured in _cells(result):
            set_up = [f"{value:g}" for value in (result["inputs"], result["outputs"], gamma, sigma)]
            noise.append([*set_up, f"{predicted:.2f}", f"{measured:.2f}"])
    text = f"""## The theorems

Where an update g - γW rests: ⟨E[g], E[H]⟩ = γE‖h_b‖² for any g (weak); E⟨g_n, H_n⟩ = γE‖h_a‖²‖W‖² + Cov(‖h_a‖²,
s·h_b) for gradients (strong; the paper has no covariance); and cos(E[g], E[H]) = cos(W, WΣ_a).

{table(["identity", "γ", "left", "right", "relative difference"], rows, ".rrrr")}

Linear regression with noise on the weights, E⟨g, H⟩ = (d + 2)[‖W*‖²γ/(1 + γ)² - σ²dm], beside SGD:

{table(["d", "m", "γ", "σ", "closed form", "SGD"], noise, "rrrrrr")}"""
    return text, {"identities": rows, "noise": noise}


def sweep(found: Found, out: Path) -> Told:
    """Table 1."""
    by_row, rows, verdicts = rows_of(found), [], []
    for row, cells in by_row.items():
        texts = []
        for gamma, students in cells.items():
            mean = averaged(students)
            collapsed = averaged(students, "norm").mean / averaged(students, "start_norm").mean < COLLAPSED
            texts.append(cell(mean) + (" c" if collapsed else ""))
            if row in PAPER and gamma in GAMMAS:
                paper = PAPER[row][GAMMAS.index(gamma)]
                near = paper is not None and abs(mean.mean - paper) <= max(CLOSE, mean.half or 0)
                verdicts.append((row, gamma, agrees := collapsed if paper is None else near and not collapsed))
                texts[-1] += f" ({'–' if paper is None else two(paper)}) {'yes' if agrees else '**no**'}"
        rows.append([row, *texts, grows(cells)])
    kinds = ("batch_cos", "sample_cos", "step_cos")
    ways = [
        [row, *(" / ".join(two(averaged(s, k).mean) for k in kinds) for s in c.values())] for row, c in by_row.items()
    ]
    agreed = sum(agrees for *_, agrees in verdicts)
    text = f"""## Weight decay: Table 1 of the paper

A1 at the second layer over the last 3 epochs, mean ± 95% interval over seeds; the paper's mean in brackets, and
whether it agrees: it lies in our interval or within {two(CLOSE)} of our mean. "c" and "–": the weights collapsed (ours:
below a tenth of ‖W‖ at the start). **{agreed} of {len(verdicts)} cells agree.** Last column: no mean is more than
{two(SLACK)} below the one before it, and the last is more than that above the first.

The source does not tell the paper's widths, learning rates, loss scale and layer. Ours: 32-128-128-32, tanh, squared
error averaged over outputs, η = .1, or .001 for Adam (its decay joins the gradient) and AdamW; the transformer has two
pre-norm blocks, 4 heads, sequences of 8 tokens, 256 tokens to a batch.

{table(heads(by_row, "grows with γ"), rows)}

By estimator: A1 / A2 / A1 of the optimiser's step less the decay (which cannot be taken out of coupled Adam's).

{table(heads(by_row), ways)}"""
    keys = (*kinds, "inner", "unrest", "norm", "loss")
    means = {row: {f"{g:g}": {k: averaged(s, k).mean for k in keys} for g, s in c.items()} for row, c in by_row.items()}
    return text, {"agreed": agreed, "of": len(verdicts), "verdicts": verdicts, "means": means}


def activations(found: Found, out: Path) -> Told:
    """Activation functions, and alignment over time."""
    by_row = rows_of(found)
    shown, lines, bumps = list(by_row["tanh"])[-2:][0], {}, []
    for row in ("tanh", "relu", "tanh, η = .01", "relu, η = .01"):
        points = zip(*(s["history"] for s in by_row[row][shown]), strict=True)
        lines[row] = [[fmean(values) for values in zip(*point, strict=True)] for point in points]
        steps, values, _ = zip(*lines[row], strict=True)
        peak, low = _peak(values)
        if min(values[peak] - values[0], values[peak] - low) >= BUMP:
            bumps.append(f"{row}: {two(values[peak])} at step {steps[peak]:.0f}, then {two(low)}")
    drawing.over_time(out, "alignment-time", ("cosine of signal and Hebb, A1", "‖W‖"), lines)
    text = f"""## Activation functions, and the early bump

SGD on the regression (η = .1 where nothing is said), A1. The paper: growth with γ is robust across activations.

{by_decay(by_row)}

![alignment over time](alignment-time.svg)

The paper sees an early peak, above all for ReLU at a small learning rate. Here a bump is a rise by {two(BUMP)} or more
from the start, and then a fall by as much. At γ = {shown:g}: {"; ".join(bumps) or "none"}."""
    return text, {"lines": lines, "bumps": bumps}


def batch(found: Found, out: Path) -> Told:
    """A1 against the batch, beside the formula."""
    by_row, sized, near, rows = rows_of(found), {}, [0, 0], []
    main = next(cells for cells in by_row.values() if next(iter(cells.values()))[0]["sized"])
    sizes = [size for size, _ in next(iter(main.values()))[0]["sized"]]
    for gamma, students in main.items():
        lines = [
            [fmean(s["sized"][i][1] for s in students) for i in range(len(sizes))],
            [fmean(_formula(s["gamma"] * s["norm"], s["rest_cos"], s["spread"] / n) for s in students) for n in sizes],
            [fmean(_formula(s["signal"], s["mean_cos"], s["spread"] / n) for s in students) for n in sizes],
        ]
        trained = [[int(n), averaged(by_row[n][gamma]).mean] for n in sorted(by_row, key=int)]
        sized[gamma] = {"sizes": sizes, "lines": lines, "trained": trained}
        for i in (0, 1):
            near[i] += sum(abs(a - b) <= CLOSE for a, b in zip(lines[0], lines[i + 1], strict=True))
        unrest = two(fmean(s["unrest"] for s in students))
        rows.append([f"{gamma:g}", unrest, *(" / ".join(map(two, column)) for column in zip(*lines, strict=True))])
    drawing.by_batch(out, "alignment-batch", sized)
    text = f"""## The batch

At exact rest cos(E[g], E[H]) = cos(W, WΣ_a), whatever γ is: that a measured cosine grows with γ comes from the noise of
finite batches, S = E‖g_n‖² - ‖E[g]‖², and from not being at rest:

    cos ≈ γ‖W‖ cos(W, WΣ_a) / √(γ²‖W‖² + S/B)    at rest
    cos ≈ ‖E[g]‖ cos(E[g], E[H]) / √(‖E[g]‖² + S/B)    anywhere

A1 at the final weights over batches of B / the formula at rest / anywhere; unrest is ‖E[g] - γW‖ / (‖E[g]‖ + γ‖W‖).
Of {len(sizes) * len(rows)} cells the first is within {two(CLOSE)} in {near[0]}, the second in {near[1]}; neither has
the noise of H, which counts where B is small. Circles: trained with that batch too, for about as many steps.

{table(["γ", "unrest", *(f"B = {size}" for size in sizes)], rows)}

![alignment against the batch](alignment-batch.svg)"""
    return text, {f"{gamma:g}": of for gamma, of in sized.items()}


def phase(found: Found, out: Path) -> Told:
    """The phase diagrams, and what goes with alignment."""
    from scipy.stats import spearmanr

    linear, students = found["linear"], [s for name in found if name != "linear" for s in found[name]["students"]]
    gammas, sigmas = (sorted({s[key] for s in students}) for key in ("gamma", "sigma"))
    grid = {(s["gamma"], s["sigma"]): s for s in students}
    limits = {gamma: grid[gamma, 0]["noise_limit"] for gamma in gammas}
    cosines = [[grid[gamma, sigma]["batch_cos"] for sigma in sigmas] for gamma in gammas]
    drawing.phases(out, "alignment-phase", linear, (gammas, sigmas, cosines, list(limits.values())))

    most = max(abs(a - b) for _, a, b in _cells(linear)) / (linear["inputs"] + 2)
    clear = [s for s in students if abs(s["batch_cos"]) > SLACK]
    right = sum((s["sigma"] < limits[s["gamma"]]) == (s["batch_cos"] > 0) for s in clear)
    best = min(students, key=lambda s: s["loss"])
    told = [s for s in students if s["oscillation"] is not None]
    ranked: Any = spearmanr([s["oscillation"] for s in told], [s["loss"] for s in told])
    rho, chance = float(ranked[0]), float(ranked[1])
    text = f"""## Noise against decay

![phase diagrams](alignment-phase.svg)

Left: linear regression by SGD with noise on the weights, d = {linear["inputs"]}, ‖W*‖ = 1: ⟨g, H⟩ / (d + 2).
The line is the exact boundary σ² = γ‖W*‖² / (dm(1 + γ)²). Measured and closed form differ by at most {most:.3f}.

Right: A1 of the regression MLP, noise on all weights, on the values that were tried. The line is linear theory for the
measured layer alone, γE‖h_b‖² = σ² tr(C)‖Σ_a‖²_F with the mean curvature C of the loss by h_b, all of the student
without noise at that γ. Of {len(clear)} cells with |A1| above {two(SLACK)} it has the sign of {right} right.

- The lowest held-out loss is at γ = {best["gamma"]:g}, σ = {best["sigma"]:g}, where A1 is {two(best["batch_cos"])}.
  Near 0, as in the paper (within {two(CLOSE)}): {yes(abs(best["batch_cos"]) <= CLOSE)}.
- How often a neuron's ⟨g, H⟩ changes sign from step to step has a rank correlation of {two(rho)} with the loss,
  p = {chance:.2g}. Lower losses with more oscillation, as in the paper (p < .05): {yes(rho < 0 and chance < 0.05)}."""
    cells = [[s[k] for k in ("gamma", "sigma", "batch_cos", "loss", "oscillation")] for s in students]
    return text, {"signs_right": right, "of": len(clear), "rank_correlation": rho, "cells": cells}


def classification(found: Found, out: Path) -> Told:
    """The standard classification experiment."""
    by_row = rows_of(found)
    right = [[row, *(f"{averaged(s, 'accuracy').mean:.1%}" for s in cells.values())] for row, cells in by_row.items()]
    text = f"""## Classification

Cross-entropy, tanh, two hidden layers of 128; the second layer's A1, and the held-out accuracy. Data:
{next(iter(found.values()))["data"]}.
The paper's text has no figures of this experiment, but that alignment grows with γ.

{by_decay(by_row)}

{table(heads(by_row), right)}"""
    return text, {row: {f"{g:g}": [s["batch_cos"] for s in ss] for g, ss in by.items()} for row, by in by_row.items()}


SECTIONS = {
    "theorems": theorems,
    "sweep": sweep,
    "activations": activations,
    "batch": batch,
    "phase": phase,
    "classification": classification,
    "saes": saes_report.section,
}


def rows_of(found: Found) -> ByRow:
    """Students of units named `ROW @ γ` or `ROW`, by row and decay."""
    by_row: ByRow = {}
    for name, result in found.items():
        for student in result["students"]:
            by_row.setdefault(name.partition(" @ ")[0], {}).setdefault(student["gamma"], []).append(student)
    return by_row


def by_decay(by_row: ByRow) -> str:
    """A table of A1."""
    rows = [[row, *(cell(averaged(s)) for s in cells.values()), grows(cells)] for row, cells in by_row.items()]
    return table(heads(by_row, "grows with γ"), rows)


def heads(by_row: ByRow, *last: str) -> list[str]:
    return ["", *(f"γ = {gamma:g}" for gamma in next(iter(by_row.values()))), *last]


def averaged(students: Iterable[Student], key: str = "batch_cos") -> Estimate:
    """Over seeds; NaN where all of them diverged."""
    return estimate(s[key] for s in students) or Estimate(0, math.nan)


def cell(mean: Estimate) -> str:
    return two(mean.mean) + (f" ± {two(mean.half)}" if mean.half is not None else "")


def two(value: float) -> str:
    """.12, -.03, 1.00: two decimals; a dash for NaN."""
    if math.isnan(value):
        return NONE
    return f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 0.995 else f"{value:.2f}"


def yes(true: bool) -> str:
    return "yes" if true else "no"


def grows(cells: Mapping[float, list[Student]]) -> str:
    means = [averaged(cells[gamma]).mean for gamma in sorted(cells)]
    return yes(means[-1] > means[0] + SLACK and all(b >= a - SLACK for a, b in itertools.pairwise(means)))


def _cells(linear: Mapping[str, Any]) -> Iterable[tuple[tuple[float, float], float, float]]:
    """(γ, σ), the closed form and what was measured, of all that `theory.descend` told."""
    grid = itertools.product(linear["gammas"], linear["sigmas"])
    return zip(grid, itertools.chain(*linear["predicted"]), itertools.chain(*linear["measured"]), strict=True)


def _peak(values: Sequence[float]) -> tuple[int, float]:
    """Where the greatest fall begins, and how low it ends."""
    lowest = [min(values[i:]) for i in range(len(values))]
    peak = max(range(len(values)), key=lambda i: values[i] - lowest[i])
    return peak, lowest[peak]


def _formula(pull: float, at_rest: float, noise: float) -> float:
    """The cosine of a batch's mean, where the mean's length is `pull` and its variance `noise`."""
    length = math.sqrt(pull**2 + noise)
    return pull * at_rest / length if length else 0.0
