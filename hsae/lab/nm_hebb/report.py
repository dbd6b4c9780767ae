"""The chapter's words, tables and figures; every verdict is computed from the numbers."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from hsae.canvas import PALETTE, canvas
from hsae.figures import NONE
from hsae.intervals import Estimate, estimate
from hsae.lab.images import Images
from hsae.sharing.markdown import plain, table

Run = dict[str, Any]
Runs = dict[str, dict[str, list[Run]]]  # part, label, one for each seed
# Each part: its title, what to know, its measures.
PARTS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "comparison": (
        "Plain training, one phase, both phases",
        "*plain, phase 2* lacks the Hebbian term and nothing else.",
        ("accuracy", "NMI", "selectivity", "speckle", "R"),
    ),
    "sanity": (
        "First experiment: what the Hebbian term does to its layer",
        "*speckle*: the share of filters with more than half their energy in high frequencies, or a lag-1 correlation "
        "within ±.1; *less means*: of kernels less their means, so that no offset hides it. R compares ā, the mean "
        "activation, with w̄, the mean weight. *centred*: ā less its mean over filters; *local*: only weights follow. "
        "*cos Hebb*: of the term's step with that of Hebb's rule, Σ y x.",
        ("accuracy", "speckle", "speckle less means", "selectivity", "R", "ā", "w̄", "HAF", "cos Hebb"),
    ),
    "gate": (
        "Second experiment: the gate",
        "*learned* is the source's: φ descends the loss in which ν scales a penalty. *constant* is its scalar, ½.",
        ("accuracy", "NMI", "ν, at first", "ν, end of phase 1", "ν, end of phase 2"),
    ),
    "margin": (
        "Third experiment: the margin",
        "Embeddings have length 1 and no entry below 0, so that no two are further apart than √2.",
        ("accuracy", "NMI", "NMI after phase 1"),
    ),
    "consolidation": (
        "Consolidation",
        "Phase 2 with and without cross-entropy (CE), with and without the pull to the weights θ⁻ of phase 1.",
        ("test CE after phase 1", "test CE", "accuracy", "NMI", "‖θ - θ⁻‖ / ‖θ⁻‖"),
    ),
}
RANGES = {
    "above 0": (0.0, math.inf),
    "below 0": (-math.inf, 0.0),
    "+.02 to +.10": (0.02, 0.1),
    "+.07 to +.15": (0.07, 0.15),
}
# The part; what is compared, with what; in what; what is claimed of the difference.
CLAIMS = (
    ("comparison", "phases 1, 2", "plain", "accuracy", "+.02 to +.10"),
    ("comparison", "phases 1, 2", "plain", "NMI", "+.07 to +.15"),
    ("comparison", "phase 1", "plain", "NMI", "above 0"),
    ("comparison", "phases 1, 2", "phase 1", "NMI", "above 0"),
    ("comparison", "phases 1, 2", "plain, phase 2", "accuracy", "above 0"),
    ("sanity", "source", "none", "speckle", "below 0"),
    ("sanity", "source", "none", "speckle less means", "below 0"),
    ("sanity", "source", "none", "selectivity", "above 0"),
    ("sanity", "source", "none", "R", "below 0"),
    ("gate", "learned", "constant", "accuracy", "above 0"),
    ("gate", "learned", "monotone", "ν, end of phase 1", "ours: below 0"),
    ("consolidation", "no CE, pull", "no CE, free", "test CE", "below 0"),
)


def measures(run: Run) -> dict[str, float | None]:
    """What was measured of a run at its end, but where another time is named, by the tables' names."""
    first, end, curves = run["first"], run.get("second", run["first"]), run["curves"]
    return {
        "accuracy": end["accuracy"],
        "test CE": end["loss"],
        "test CE after phase 1": first["loss"],
        "NMI": end["nmi"],
        "NMI after phase 1": first["nmi"],
        "selectivity": end["selectivity"],
        "speckle": end["speckle"],
        "speckle less means": end["speckle_centred"],
        "R": end["term"],
        "ā": end["activation"],
        "w̄": end["weight"],
        "HAF": end["haf"],
        "cos Hebb": end["hebb"],
        "ν, at first": curves[0][0][2],
        "ν, end of phase 1": curves[0][-1][2],
        "ν, end of phase 2": curves[-1][-1][2],
        "‖θ - θ⁻‖ / ‖θ⁻‖": run.get("moved"),
    }


def head(data: Images, count: int, epochs: tuple[int, ...], seeds: tuple[int, ...]) -> str:
    """What was trained on what, and how verdicts come about."""
    first, second = epochs
    return (
        f"{plain(data.name)}: {count:,} training and {len(data.y_test):,} test images of {data.x_train.shape[3]} x "
        f"{data.x_train.shape[2]}, {len(data.classes)} classes ({data.split}); {first} epochs of phase 1 and {second} "
        f"of phase 2, {first + second} where there is but one phase; seeds {', '.join(map(str, seeds))}. The source "
        "trains five networks on CIFAR-10, CIFAR-100 and TinyImageNet, on all images and for longer; its rates, the "
        "weights of its penalties and its definition of speckle are not in its text.\n\n"
        "Cells: mean ± half of the 95% interval (Student's t) over seeds. A claim *agrees* if the interval of the "
        "difference, seed by seed, excludes 0 and reaches into the range claimed; *disagrees* if it does not reach "
        "there; else it is *undecided*."
    )


def claims(runs: Runs) -> list[dict[str, str]]:
    """Every claim whose part was done: the mean difference over seeds, and the verdict."""
    found = []
    for part, one, other, name, says in CLAIMS:
        if part in runs:
            pairs = zip(*([measures(run)[name] for run in runs[part][arm]] for arm in (one, other)), strict=True)
            gain = estimate(a - b for a, b in pairs if a is not None and b is not None)
            said = {"compared": f"{one} - {other}", "in": name, "claimed": says, "here": cell(gain)}
            found.append(said | {"verdict": verdict(gain, *RANGES[says.removeprefix("ours: ")])})
    return found


def verdict(gain: Estimate | None, low: float, high: float) -> str:
    """What a difference, with its interval, says of the claim that it lies in a range on one side of 0."""
    if gain is None or gain.half is None:
        return "one seed" if gain else "not measured"
    least, most = gain.mean - gain.half, gain.mean + gain.half
    if most <= low or least >= high:
        return "**disagrees**"
    return "undecided" if least <= 0 <= most else "agrees"


def cell(value: Estimate | None) -> str:
    """A mean with half its interval."""
    if value is None:
        return NONE
    numbers = [f"{v:.3f}" if abs(value.mean) < 10 else f"{v:.1f}" for v in (value.mean, value.half) if v is not None]
    return " ± ".join(number.replace("0.", ".", 1) if number.lstrip("-")[0] == "0" else number for number in numbers)


def of(backbone: str, layer: str, runs: Runs, out: Path) -> list[str]:
    """What was found with one network, in Markdown; its figures are written to `out`."""
    size = next(iter(next(iter(runs.values())).values()))[0]["parameters"]
    parts = [f"## {backbone}", f"{size:,} parameters; the Hebbian term is of `{layer}`."]
    if found := claims(runs):
        parts.append(table(list(found[0]), [list(claim.values()) for claim in found], "...r."))
    for part, arms in runs.items():
        title, words, names = PARTS[part]
        known = [[measures(run) for run in done] for done in arms.values()]
        rows = [(name, *(cell(estimate(each[name] for each in done)) for done in known)) for name in names]
        parts += [f"### {title}", words, table(("", *arms), rows, "." + "r" * len(arms))]
        if part in FIGURES:
            FIGURES[part](out, f"nm-hebb-{backbone}-{part}", arms)
            parts.append(f"![{title}](nm-hebb-{backbone}-{part}.svg)")
    return parts


def _embeddings(out: Path, name: str, arms: dict[str, list[Run]]) -> None:
    with canvas(out, name, 1, len(arms), 2.1) as (_, panels):
        for (label, done), panel in zip(arms.items(), panels, strict=True):
            x, y, kind = zip(*done[0]["points"], strict=True)
            panel.scatter(x, y, c=kind, cmap="tab10", s=3, linewidths=0)
            panel.set_title(label)
            panel.axis("off")


def _filters(out: Path, name: str, arms: dict[str, list[Run]]) -> None:
    """Kernels in a square, each as bright as it can be."""
    import numpy as np

    shown = {"at first": arms["none"][0]["kernels"][0]} | {k: v[0]["kernels"][1] for k, v in arms.items()}
    with canvas(out, name, 1, len(shown), 1.9) as (_, panels):
        for (label, kernels), panel in zip(shown.items(), panels, strict=True):
            tiles = np.pad(np.array(kernels), ((0, 0), (0, 1), (0, 1)), constant_values=np.nan)
            tiles = tiles / np.nanmax(abs(tiles), axis=(1, 2), keepdims=True).clip(1e-9)
            square = np.vstack([np.hstack(list(row)) for row in np.split(tiles, math.isqrt(len(tiles)))])
            panel.imshow(square, cmap="RdBu_r", vmin=-1, vmax=1)
            panel.set_title(label)
            panel.axis("off")


def _gates(out: Path, name: str, arms: dict[str, list[Run]]) -> None:
    with canvas(out, name, 1, 1, 2.4) as (_, (panel,)):
        for (label, done), colour in zip(arms.items(), PALETTE, strict=False):
            seeds = [[row[2] for curve in run["curves"] for row in curve] for run in done]
            panel.plot([statistics.fmean(nus) for nus in zip(*seeds, strict=True)], color=colour, label=label)
        panel.axvline(len(arms["learned"][0]["curves"][0]) - 0.5, color="#888888", linewidth=0.8)
        panel.set(title="ν over phase 1 | phase 2", ylim=(0, 1.02), xticks=[])
        panel.legend(loc="upper left", bbox_to_anchor=(1, 1))


FIGURES = {"comparison": _embeddings, "sanity": _filters, "gate": _gates}
