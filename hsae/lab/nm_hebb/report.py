"""The chapter's words, tables and figures; every verdict is computed from the numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hsae.canvas import PALETTE, canvas
from hsae.figures import NONE
from hsae.intervals import Estimate, estimate
from hsae.lab.images import Images
from hsae.sharing.markdown import plain, table

Run = dict[str, Any]
Runs = dict[str, dict[str, list[Run]]]  # part, label, one for each seed
Read = tuple[str, Callable[[Run], float | None]]  # a measure's name; reads it


def last(head: str, name: str) -> Read:
    """What was measured at the end."""
    return head, lambda run: run.get("second", run["first"])[name]


def early(head: str, name: str) -> Read:
    """What was measured after phase 1."""
    return head, lambda run: run["first"][name]


def nu(head: str, phase: int, look: int) -> Read:
    """The gate, from the curve of a phase."""
    return head, lambda run: run["curves"][phase][look][2]


ACCURACY, NMI, SELECTIVITY = last("accuracy", "accuracy"), last("NMI", "nmi"), last("selectivity", "selectivity")
SPECKLE, LESS_MEANS = last("speckle", "speckle"), last("speckle less means", "speckle_centred")
TERM, GATE = last("R", "term"), nu("ν, end of phase 1", 0, -1)
# Each part: its title, what to know, its measures.
PARTS: dict[str, tuple[str, str, tuple[Read, ...]]] = {
    "comparison": (
        "Plain training, one phase, both phases",
        "*plain, phase 2* lacks the Hebbian term and nothing else.",
        (ACCURACY, NMI, SELECTIVITY, SPECKLE, TERM),
    ),
    "sanity": (
        "First experiment: what the Hebbian term does to its layer",
        "*speckle*: the share of filters with more than half their energy in high frequencies, or a lag-1 correlation "
        "within ±.1; *less means*: of kernels less their means, so that no offset hides it. R compares ā, the mean "
        "activation, with w̄, the mean weight. *centred*: ā less its mean over filters; *local*: only weights follow. "
        "*cos Hebb*: of the term's step with that of Hebb's rule, Σ y x.",
        (
            *(ACCURACY, SPECKLE, LESS_MEANS, SELECTIVITY, TERM, last("ā", "activation"), last("w̄", "weight")),
            *(last("HAF", "haf"), last("cos Hebb", "hebb")),
        ),
    ),
    "gate": (
        "Second experiment: the gate",
        "*learned* is the source's: φ descends the loss in which ν scales a penalty. *constant* is its scalar, ½.",
        (ACCURACY, NMI, nu("ν, at first", 0, 0), GATE, nu("ν, end of phase 2", -1, -1)),
    ),
    "margin": (
        "Third experiment: the margin",
        "Embeddings have length 1 and no entry below 0, so that no two are further apart than √2.",
        (ACCURACY, NMI, early("NMI after phase 1", "nmi")),
    ),
    "consolidation": (
        "Consolidation",
        "Phase 2 with and without cross-entropy (CE), with and without the pull to the weights θ⁻ of phase 1.",
        (
            *(early("test CE after phase 1", "loss"), last("test CE", "loss"), ACCURACY, NMI),
            ("‖θ - θ⁻‖ / ‖θ⁻‖", lambda run: run["moved"]),
        ),
    ),
}
ABOVE, BELOW = (0.0, math.inf), (-math.inf, 0.0)
# The part; what is compared, with what; in what; what is claimed of the difference; the range that this is.
CLAIMS: tuple[tuple[str, str, str, Read, str, tuple[float, float]], ...] = (
    ("comparison", "phases 1, 2", "plain", ACCURACY, "+.02 to +.10", (0.02, 0.10)),
    ("comparison", "phases 1, 2", "plain", NMI, "+.07 to +.15", (0.07, 0.15)),
    ("comparison", "phase 1", "plain", NMI, "above 0", ABOVE),
    ("comparison", "phases 1, 2", "phase 1", NMI, "above 0", ABOVE),
    ("comparison", "phases 1, 2", "plain, phase 2", ACCURACY, "above 0", ABOVE),
    ("sanity", "source", "none", SPECKLE, "below 0", BELOW),
    ("sanity", "source", "none", LESS_MEANS, "below 0", BELOW),
    ("sanity", "source", "none", SELECTIVITY, "above 0", ABOVE),
    ("sanity", "source", "none", TERM, "below 0", BELOW),
    ("gate", "learned", "constant", ACCURACY, "above 0", ABOVE),
    ("gate", "learned", "monotone", GATE, "ours: below 0", BELOW),
    ("consolidation", "no CE, pull", "no CE, free", last("test CE", "loss"), "below 0", BELOW),
)


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


def claims(runs: Runs) -> list[dict[str, Any]]:
    """Every claim whose part was done: the mean difference over seeds, and the verdict."""
    found = []
    for part, one, other, (name, read), says, (low, high) in CLAIMS:
        if part in runs:
            both = [(read(a), read(b)) for a, b in zip(runs[part][one], runs[part][other], strict=True)]
            gain = estimate(a - b for a, b in both if a is not None and b is not None)
            said = {"compared": f"{one} - {other}", "in": name, "claimed": says, "here": cell(gain)}
            found.append(said | {"verdict": verdict(gain, low, high)})
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
        title, words, reads = PARTS[part]
        rows = [(name, *(cell(estimate(map(read, done))) for done in arms.values())) for name, read in reads]
        parts += [f"### {title}", words, table(("", *arms), rows, "." + "r" * len(arms)), *_share(part, arms)]
        parts += [f"![{title}]({name}.svg)" for name in drawn(backbone, part, arms, out)]
    return parts


def _share(part: str, arms: dict[str, list[Run]]) -> list[str]:
    """Whether activations or weights close the gap between ā and w̄."""
    if part != "sanity":
        return []
    (a, b), (w, v) = (
        [statistics.fmean(run["first"][key] for run in arms[label]) for label in ("none", "source")]
        for key in ("activation", "weight")
    )
    if not (closed := (a - w) - (b - v)) > 0:
        return ["With the source's term, ā and w̄ end no nearer to each other than without."]
    return [f"Of what brings ā and w̄ nearer with the source's term, {100 * (a - b) / closed:.0f}% is a change of ā."]


def drawn(backbone: str, part: str, arms: dict[str, list[Run]], out: Path) -> list[str]:
    """Draw a part's figure, where it has one; its name."""
    name = f"nm-hebb-{backbone}-{part}"
    if part == "gate":
        with canvas(out, name, 1, 2, 2.8) as (_, (left, right)):
            for (label, done), colour in zip(arms.items(), PALETTE, strict=False):
                gates = [[row[2] for curve in run["curves"] for row in curve] for run in done]
                left.plot([statistics.fmean(nus) for nus in zip(*gates, strict=True)], color=colour, label=label)
                terms = [[row[1] for row in run["curves"][0]] for run in done]
                right.plot([statistics.fmean(values) for values in zip(*terms, strict=True)], color=colour)
            left.axvline(len(arms["learned"][0]["curves"][0]) - 0.5, color="#888888", linewidth=0.8)
            left.set(title="ν over phase 1 | phase 2", ylim=(0, 1), xticks=[])
            right.set(title="R over phase 1", yscale="log", xticks=[])
            left.legend()
    elif part == "comparison":
        with canvas(out, name, 1, len(arms), 2.1) as (_, panels):
            for (label, done), panel in zip(arms.items(), panels, strict=True):
                x, y, kind = zip(*done[0]["points"], strict=True)
                panel.scatter(x, y, c=kind, cmap="tab10", s=3, linewidths=0)
                panel.set_title(label)
                panel.axis("off")
    elif part == "sanity":
        shown = {"at first": arms["none"][0]["kernels"][0]} | {k: v[0]["kernels"][1] for k, v in arms.items()}
        with canvas(out, name, 1, len(shown), 1.9) as (_, panels):
            for (label, kernels), panel in zip(shown.items(), panels, strict=True):
                panel.imshow(mosaic(kernels), cmap="RdBu_r", vmin=-1, vmax=1)
                panel.set_title(label)
                panel.axis("off")
    else:
        return []
    return [name]


def mosaic(kernels: list[list[list[float]]]) -> Any:
    """Kernels in a square, each as bright as it can be, NaN between them."""
    import numpy as np

    tiles = np.pad(np.array(kernels), ((0, 0), (0, 1), (0, 1)), constant_values=np.nan)
    tiles = tiles / np.nanmax(abs(tiles), axis=(1, 2), keepdims=True).clip(1e-9)
    side = math.isqrt(len(tiles))
    return np.vstack([np.hstack(tiles[i * side : (i + 1) * side]) for i in range(side)])


def without_drawings(runs: Runs) -> dict[str, Any]:
    """The runs' numbers, less what only a figure needs."""
    left = ("kernels", "points")
    return {
        part: {label: [{k: v for k, v in run.items() if k not in left} for run in done] for label, done in arms.items()}
        for part, arms in runs.items()
    }
