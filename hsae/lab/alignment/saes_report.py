"""What decay did to the learning signals of sparse autoencoders: a figure, tables, and verdicts made of the numbers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from hsae.figures import fraction
from hsae.intervals import estimate
from hsae.lab.alignment import drawing
from hsae.lab.alignment.saes import DECAYS, SIDES, SWEPT
from hsae.sharing.markdown import table

# Alignment "at the end" is the mean over the last logged steps.
LAST, WORTH = 10, ("EVR", "L0", "dictionary")
PATHS = {kind: ["none 0", *(f"{kind} {gamma:g}" for gamma in gammas)] for kind, gammas in DECAYS.items() if any(gammas)}
"""the trainings of each sweep, γ growing"""

Values = Sequence[float | int | None]
"""one for each seed; None where it diverged, or has no such number"""


def section(found: Mapping[str, Any], out: Path) -> tuple[str, dict[str, Any]]:
    """The section, whose figure is drawn into `out`, and its numbers; found: what `saes.trained` told of each decay."""
    ends = {f"{setup}, {d}": values(seeds) for d, setups in found.items() for setup, seeds in setups.items()}
    lines: dict[str, Any] = {}
    for decay in PATHS["L2"]:
        both = [_over_time(found[decay][setup]) for setup in SWEPT]
        steps = map(float, found[decay]["bp"][0]["steps"])
        lines[f"γ = {decay.split()[1]}"] = list(zip(steps, *both, strict=False))
    drawing.over_time(out, "alignment-saes", [f"{setup}, encoder, L2: A2" for setup in SWEPT], lines)
    shown = [*WORTH, *(f"{side} {name}" for side in SIDES for name in ("batch_cos", "sample_cos"))]
    rows = [
        [where, *(_figure(ends[where][key]) for key in shown)]
        for where in sorted(ends, key=lambda where: (where.split(", ")[0] not in SWEPT, where.split(", ")[0]))
    ]
    judged = [
        [setup, side, kind, *drift([ends[f"{setup}, {decay}"] for decay in path], side)]
        for setup, sides in SWEPT.items()
        for kind, path in PATHS.items()
        for side in sides
    ]
    text = f"""## On sparse autoencoders

By `hsae train --probe alignment`: bp and bp-tied under weight decay γ of their matrices, L2 (γW joins the gradient) or
decoupled (γW is taken beside Adam). Cosines of minus the gradient (of a local rule: the step) with the Hebbian
direction, of a batch (A1) and by token (A2). A tied matrix has one signal, held against the directions of both its
sides. At the end: means over the last {LAST} logged steps, ± half the 95% interval over seeds.

![Alignment over training](alignment-saes.svg)

{table(["setup, decay", *WORTH, "encoder A1", "A2", "decoder A1", "A2"], rows, ".rrrrrrr")}

Does decay turn backpropagation Hebbian? Each seed's A2 at the largest γ less that at γ = 0; yes where the mean's 95%
interval lies above 0. The theorem's sign, ⟨E g, E H⟩ > 0, is that of A1 above, where γ > 0.

{table(["setup", "side", "decay", "A2, γ growing", "gained", "Hebbian"], judged)}"""
    return text, ends


def values(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Values]:
    """For each seed, what the SAE is worth, and its alignment at the end."""
    found: dict[str, Values] = {name: [one[name] for one in seeds] for name in WORTH}
    for side, name in itertools.product(SIDES, ("batch_cos", "sample_cos", "inner")):
        last = [[a[side][name] for a in one["alignment"][-LAST:]] for one in seeds]
        fine = [one["EVR"] is not None and None not in each for one, each in zip(seeds, last, strict=True)]
        found[f"{side} {name}"] = [fmean(each) if ok else None for each, ok in zip(last, fine, strict=True)]
    return found


def drift(path: Sequence[dict[str, Values]], side: str) -> list[str]:
    """A2 along one sweep, γ = 0 first; how much each seed gained; and whether that is above 0."""
    tokens = [found[f"{side} sample_cos"] for found in path]
    pairs = zip(tokens[0], tokens[-1], strict=True)
    gained = [None if a is None or b is None else b - a for a, b in pairs]
    found = estimate(gained)
    up = found is not None and found.half is not None and found.mean > found.half
    return [" → ".join(fraction(_mean(each)) for each in tokens), _figure(gained), "yes" if up else "no"]


def _over_time(seeds: Sequence[Mapping[str, Any]]) -> list[float]:
    """The encoder's A2 at each logged step, the mean over seeds that did not diverge."""
    curves = [[a["encoder"]["sample_cos"] for a in one["alignment"]] for one in seeds if one["EVR"] is not None]
    return [fmean(point) for point in zip(*curves, strict=True)]


def _mean(seeds: Values) -> float | None:
    found = estimate(seeds)
    return None if found is None else found.mean


def _figure(seeds: Values) -> str:
    found = estimate(seeds)
    half = "" if found is None or found.half is None else f" ± {fraction(found.half)}"
    return fraction(_mean(seeds)) + half
