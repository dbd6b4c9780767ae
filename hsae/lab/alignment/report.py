"""What the experiments came to, in words, tables and figures. Every verdict is computed from the numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, linear_regression
from typing import Any

import torch

from hsae.lab.alignment import drawing, theory
from hsae.lab.alignment.sweeps import (
    CLOSE,
    SLACK,
    Found,
    Told,
    activations,
    by_decay,
    classification,
    sweep,
    two,
    verdict,
)
from hsae.sharing.markdown import table


def batch(found: Found, out: Path) -> Told:
    """A1 against the batch, beside the formula."""
    sized, near, of, rows = {}, [0, 0], 0, []
    main = next(result["students"] for result in found.values() if result["students"][0]["sized"])
    for gamma, students in by_decay(main).items():
        sizes = [size for size, _ in students[0]["sized"]]
        lines = [
            [fmean(s["sized"][i][1] for s in students) for i in range(len(sizes))],
            [fmean(_formula(s["gamma"] * s["norm"], s["rest_cos"], s["spread"] / n) for s in students) for n in sizes],
            [fmean(_formula(s["signal"], s["mean_cos"], s["spread"] / n) for s in students) for n in sizes],
        ]
        by_batch = {int(n): [s["batch_cos"] for s in r["students"] if s["gamma"] == gamma] for n, r in found.items()}
        sized[gamma] = {"sizes": sizes, "lines": lines, "trained": [[n, fmean(v)] for n, v in sorted(by_batch.items())]}
        for i in (0, 1):
            near[i] += sum(abs(a - b) <= CLOSE for a, b in zip(lines[0], lines[i + 1], strict=True))
        of += len(sizes)
        rows.append([f"{gamma:g}", two(fmean(s["unrest"] for s in students))])
        rows[-1] += [" / ".join(map(two, column)) for column in zip(*lines, strict=True)]
    drawing.by_batch(out, "alignment-batch", sized)
    text = f"""## The batch

At exact rest cos(E[g], E[H]) = cos(W, WΣ_a), whatever γ is: that a measured cosine grows with γ comes from the noise of
finite batches, S = E‖g_n‖² - ‖E[g]‖², and from not being at rest:

    cos ≈ γ‖W‖ cos(W, WΣ_a) / √(γ²‖W‖² + S/B)    at rest
    cos ≈ ‖E[g]‖ cos(E[g], E[H]) / √(‖E[g]‖² + S/B)    anywhere

A1 at the final weights over batches of B / the formula at rest / anywhere; unrest is ‖E[g] - γW‖ / (‖E[g]‖ + γ‖W‖).
Of {of} cells the first formula is within {two(CLOSE)} in {near[0]}, the second in {near[1]}; both leave out the noise
of H, which counts where B is small. In the figure, circles: trained with that batch too, for about as many steps.

{table(["γ", "unrest", *(f"B = {size}" for size, _ in main[0]["sized"])], rows)}

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
    drawing.losses(out, "alignment-loss", students)

    pairs = zip(itertools.chain(*linear["measured"]), itertools.chain(*linear["predicted"]), strict=True)
    most = max(abs(a - b) for a, b in pairs) / (linear["inputs"] + 2)
    clear = [s for s in students if abs(s["batch_cos"]) > SLACK]
    right = sum((s["sigma"] < limits[s["gamma"]]) == (s["batch_cos"] > 0) for s in clear)
    columns = zip(sigmas, zip(*cosines, strict=True), strict=True)
    turns = [(sigma, at) for sigma, column in columns if sigma and (at := _crossing(gammas, column))]
    slope, best = _slope(turns), min(students, key=lambda s: s["loss"])
    near = abs(best["batch_cos"]) <= CLOSE
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
Where A1 turns at a given σ, γ grows as σ to the power {"–" if slope is None else f"{slope:.1f}"} (the paper: 2).

- The lowest held-out loss is at γ = {best["gamma"]:g}, σ = {best["sigma"]:g}, where A1 is {two(best["batch_cos"])}.
  The paper has it near 0: {verdict(near)} (within {two(CLOSE)}).
- How often a neuron's ⟨g, H⟩ changes sign from step to step has a rank correlation of {two(rho)} with the loss,
  p = {chance:.2g}. The paper has lower losses with more oscillation: {verdict(rho < 0 and chance < 0.05)} (p < .05).

![loss against alignment and oscillation](alignment-loss.svg)"""
    numbers = {"signs_right": right, "of": len(clear), "turns": turns, "slope": slope, "rank_correlation": rho}
    numbers["cells"] = [[s[k] for k in ("gamma", "sigma", "batch_cos", "loss", "oscillation")] for s in students]
    numbers["limits"] = [[gamma, limit] for gamma, limit in limits.items()]
    return text, numbers


def theorems(found: Found, out: Path) -> Told:
    """Exact identities in float64, and the closed form beside SGD."""
    g = torch.Generator().manual_seed(0)
    h_a, signal = (torch.randn(200, n, generator=g).double() for n in (12, 9))
    rows = []
    for gamma in (5e-4, 5e-2, 5.0):
        a, b = theory.weak(torch.randn(200, 9, 12, generator=g).double(), h_a, gamma)
        rows.append(["weak, any signal", f"{gamma:g}", f"{a:.6g}", f"{b:.6g}", f"{abs(a / b - 1):.0e}"])
        a, b, c = theory.strong(signal, h_a, gamma)
        rows.append(
            ["strong, with its covariance", f"{gamma:g}", f"{a:.6g}", f"{b + c:.6g}", f"{abs(a / (b + c) - 1):.0e}"]
        )
        rows.append(["strong, as in the paper", f"{gamma:g}", f"{a:.6g}", f"{b:.6g}", f"{abs(a / b - 1):.0e}"])
        a, b = theory.ridge(h_a, signal, gamma)
        rows.append(["cosine at rest, ridge regression", f"{gamma:g}", f"{a:.6g}", f"{b:.6g}", f"{abs(a / b - 1):.0e}"])
    noise = []
    for result in found.values():
        for i, j in itertools.product(range(len(result["gammas"])), range(len(result["sigmas"]))):
            sizes = [str(result["inputs"]), str(result["outputs"])]
            at = [f"{result['gammas'][i]:g}", f"{result['sigmas'][j]:g}"]
            noise.append([*sizes, *at, f"{result['predicted'][i][j]:.2f}", f"{result['measured'][i][j]:.2f}"])
    text = f"""## The theorems

Where an update g - γW rests, E[g] = γW. Weak: ⟨E[g], E[H]⟩ = γE‖h_b‖², whatever g is. Strong, of gradients:
E⟨g_n, H_n⟩ = γE‖h_a‖²‖W‖² + Cov(‖h_a‖², s·h_b), where the paper takes ‖h_a‖ as constant and has no covariance. And
cos(E[g], E[H]) = cos(W, WΣ_a).

{table(["identity", "γ", "left", "right", "relative difference"], rows, "..rrr"[1:])}

Linear regression with noise on the weights, E⟨g, H⟩ = (d + 2)[‖W*‖²γ/(1 + γ)² - σ²dm], beside SGD:

{table(["d", "m", "γ", "σ", "closed form", "SGD"], noise, "rrrrrr")}"""
    return text, {"identities": rows, "noise": noise}


def _formula(pull: float, at_rest: float, noise: float) -> float:
    """The cosine of a batch's mean, where the mean's length is `pull` and its variance `noise`."""
    length = math.sqrt(pull**2 + noise)
    return pull * at_rest / length if length else 0.0


def _crossing(gammas: Sequence[float], cosines: Sequence[float]) -> float | None:
    """The γ at which alignment turns from below 0 to above, between two that were measured."""
    for (g, a), (h, b) in itertools.pairwise(zip(gammas, cosines, strict=True)):
        if a < 0 < b and g > 0:
            return math.exp(math.log(g) + a / (a - b) * math.log(h / g))
    return None


def _slope(points: Sequence[tuple[float, float]]) -> float | None:
    """Of log y by log x."""
    if len(points) < 2:
        return None
    return linear_regression(*([math.log(p[i]) for p in points] for i in (0, 1))).slope


SECTIONS = {
    "theorems": theorems,
    "sweep": sweep,
    "activations": activations,
    "batch": batch,
    "phase": phase,
    "classification": classification,
}
