"""What decay did to the learning signals of sparse autoencoders: a figure, tables, and verdicts made of the numbers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from hsae.figures import NONE, fraction, scientific
from hsae.intervals import estimate
from hsae.sharing.markdown import table

SIDES = ("encoder", "decoder")
SWEPT = {"bp": SIDES, "bp-tied": SIDES[:1]}
"""setups whose decay is varied, and what backpropagation trains in each"""
TOPK = "bp-topk"
"""bp with k latents a token in place of an L1 penalty"""
KINDS = {"L2": (1e-7, 1e-6, 1e-5, 1e-4), "decoupled": (0.3, 1.0, 3.0)}
"""kinds of decay, and their γ"""
# Alignment "at the end" is the mean over the last logged steps. EVR that counts as no loss.
LAST, SPARED = 10, 0.02
WORTH: dict[str, Callable[[float | None], str]] = {
    "EVR": fraction,
    **dict.fromkeys(("L0", "dictionary", "‖W_enc‖"), lambda value: NONE if value is None else f"{value:.1f}"),
}
ALIGNED = {"batch": "batch_cos", "token": "sample_cos", "inner": "inner"}

Where = tuple[str, str, float]
"""setup, kind of decay (none where γ is 0), γ"""
Values = Sequence[float | None]
"""one for each seed; None where it diverged, or has no such number"""


def values(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Values]:
    """For each seed, what the SAE is worth, and its alignment at the end."""
    found: dict[str, Values] = {name: [one[name] for one in seeds] for name in WORTH}
    for side, name in itertools.product(SIDES, ALIGNED.values()):
        last = [[a[side][name] for a in one["alignment"][-LAST:]] for one in seeds]
        fine = [one["EVR"] is not None and None not in each for one, each in zip(seeds, last, strict=True)]
        found[f"{side} {name}"] = [fmean(each) if ok else None for each, ok in zip(last, fine, strict=True)]
    return found


def draw(
    out: Path, saes: Mapping[Where, Sequence[Mapping[str, Any]]], found: Mapping[Where, dict[str, Values]]
) -> None:
    """`alignment-saes`: the token cosine over training under L2, and the EVR that it goes with at the end."""
    from hsae.canvas import PALETTE, canvas

    with canvas(out, "alignment-saes", 2, 2, 5.2) as (figure, panels):
        shown = (("bp", "encoder"), ("bp-tied", "encoder"), ("bp", "decoder"))
        for panel, (setup, side) in zip(panels, shown, strict=False):
            for color, where in zip(PALETTE, _path(setup, "L2"), strict=False):
                seeds = [one for one in saes[where] if one["EVR"] is not None]
                curves = zip(*([a[side]["sample_cos"] for a in one["alignment"]] for one in seeds), strict=True)
                steps = seeds[0]["steps"] if seeds else []
                panel.plot(steps, [fmean(point) for point in curves], color=color, label=f"γ = {where[2]:g}")
            panel.set(title=f"{setup}, {side}, L2", xlabel="step", ylabel="token cosine")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
        for (color, setup), (kind, style) in itertools.product(
            zip(PALETTE, SWEPT, strict=False), zip(KINDS, ("o-", "s--"), strict=True)
        ):
            ends = [found[where] for where in _path(setup, kind)]
            xs, ys = ([_mean(end[name]) for end in ends] for name in ("encoder sample_cos", "EVR"))
            panels[3].plot(xs, ys, style, color=color, markersize=4, label=f"{setup}, {kind}")  # pyright: ignore[reportArgumentType]
        panels[3].set(title="what it costs, γ growing", xlabel="token cosine of the encoder", ylabel="EVR, pooled")
        panels[3].legend(loc="upper right")


def text(found: Mapping[Where, dict[str, Values]], sizes: str) -> str:
    """The section in Markdown.

    Args:
        found: of every training, what `values` gave.
        sizes: how they were trained.
    """
    forms = {
        f"{side} {name}": scientific if name == "inner" else fraction for side in SIDES for name in ALIGNED.values()
    }
    cells = sorted(
        found.items(), key=lambda item: (item[0][0] not in SWEPT, item[0][0], item[0][1] == "decoupled", item[0][2])
    )
    names = [(setup, f"{kind} {gamma:g}" if gamma else NONE) for (setup, kind, gamma), _ in cells]

    def rows(forms: Mapping[str, Callable[[float | None], str]]) -> list[list[str]]:
        return [
            [*name, *(_figure(each[key], form) for key, form in forms.items())]
            for name, (_, each) in zip(names, cells, strict=True)
        ]

    judged = [
        [setup, side, kind, *verdicts([found[where] for where in _path(setup, kind)], side)]
        for setup, sides in SWEPT.items()
        for kind in KINDS
        for side in sides
    ]
    return "\n\n".join(
        (
            "## On sparse autoencoders",
            f"The bundled model's activations, {sizes}; by `hsae train --probe alignment`. bp and bp-tied under weight "
            "decay γ of their matrices: L2 (γW joins the gradient) or decoupled (γW is taken beside Adam). Cosines of "
            "minus the gradient (of a local rule: the step) with the Hebbian direction, of a batch and by token, and "
            "the mean inner product by token. A tied matrix has one signal, held against the directions of both its "
            f"sides. At the end: means over the last {LAST} logged steps, ± half the 95% interval over seeds.",
            "![Alignment over training, and EVR against it](alignment-saes.svg)",
            table(("setup", "decay", *(f"{s[:3]} {n}" for s in SIDES for n in ALIGNED)), rows(forms), "..rrrrrr"),
            table(("setup", "decay", *WORTH), rows(WORTH), "..rrrr"),
            "Does decay turn backpropagation Hebbian? A drift is *up* where the seeds' token cosines at the largest γ "
            "less those at γ = 0 have a 95% interval above 0, *monotone* where besides the mean is higher at every "
            "larger γ, else *none*. The theorem's sign, ⟨E g, E H⟩ > 0, is counted over γ > 0: yes where the interval "
            "of the batch cosine lies above 0, no where it lies below. Spared: the highest cosine that costs at most "
            f"{SPARED:g} of EVR.",
            table(("setup", "side", "decay", "token cosine, γ growing", "drift", "sign", "EVR", "spared"), judged),
            penalty(found),
        )
    )


def verdicts(path: Sequence[dict[str, Values]], side: str) -> list[str]:
    """The verdicts on one sweep, γ = 0 first."""
    tokens = [found[f"{side} sample_cos"] for found in path]
    cosines, evrs = [_mean(each) for each in tokens], [_mean(found["EVR"]) for found in path]
    up = _sign(_gained(tokens[0], tokens[-1])) > 0
    rising = up and all(a is not None and b is not None and b > a for a, b in itertools.pairwise(cosines))
    signs = [_sign(found[f"{side} batch_cos"]) for found in path[1:]]
    known = [(c, evr) for c, evr in zip(cosines, evrs, strict=True) if c is not None and evr is not None]
    spared = max((cosine for cosine, evr in known if evr >= known[0][1] - SPARED), default=None)
    return [
        " → ".join(map(fraction, cosines)),
        "monotone" if rising else "up" if up else "none",
        f"{signs.count(1)} yes, {signs.count(0)} open, {signs.count(-1)} no",
        " → ".join(map(fraction, evrs)),
        fraction(spared),
    ]


def penalty(found: Mapping[Where, dict[str, Values]]) -> str:
    """What the L1 penalty has to do with it."""
    without, with_it = (found[name, "none", 0.0]["decoder sample_cos"] for name in (TOPK, "bp"))
    owed = _sign(with_it) > 0 and _sign(_gained(without, with_it)) > 0
    said = "acts on the decoder as a decay does" if owed else "is not seen to make the decoder Hebbian"
    return (
        f"Without decay the token cosine of bp's decoder is {_figure(with_it, fraction)}, and of {TOPK}'s, which has "
        f"no L1 penalty, {_figure(without, fraction)}: the penalty {said}."
    )


def _gained(before: Values, after: Values) -> Values:
    return [None if a is None or b is None else b - a for a, b in zip(before, after, strict=True)]


def _path(setup: str, kind: str) -> list[Where]:
    """Of one sweep, γ = 0 first."""
    return [(setup, "none", 0.0), *((setup, kind, gamma) for gamma in KINDS[kind])]


def _mean(seeds: Values) -> float | None:
    found = estimate(seeds)
    return None if found is None else found.mean


def _sign(seeds: Values) -> int:
    """1 where the mean's 95% interval lies above 0, -1 below, else 0."""
    found = estimate(seeds)
    half = None if found is None else found.half
    return 0 if found is None or half is None else (found.mean > half) - (found.mean < -half)


def _figure(seeds: Values, form: Callable[[float | None], str]) -> str:
    found = estimate(seeds)
    half = None if found is None else found.half
    return form(None if found is None else found.mean) + ("" if half is None else f" ± {form(half)}")
