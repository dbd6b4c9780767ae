"""The chapter's tables, each beside what the specification expects; every verdict follows from the numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hsae.figures import NONE, figure, percent
from hsae.intervals import estimate
from hsae.lab.surgery.experiments import MEMORIES, OTHERS, PROMPTS, TOKENS
from hsae.sharing.markdown import table

FIGURES = ("surgery-strength", "surgery-energy")
RULES, LAYER, WIDTH = ("hebbian", "delta", "rome", "null-space"), 3, 64
# What the specification measured: shares at strength 0.5 (the source's: kept at the strength that destroys most), the
# factors c of s = c/√d at which half and 95% come back, steps that raise the energy, its mean at basins and at starts.
EXPECTED = {"at the target": (1.0, 0.99), "at the target, projected": (1.0, 1.0), "the source's": (0.0, 0.52)}
THRESHOLDS = {64: (2.5, 3.0), 144: (2.9, 4.0), 256: (3.7, 5.0)}
ENERGIES = {"raised": "0 of 668", "source_raised": "529 of 668"}, (-26.2, 0.9), (14.0, -2.3)


@dataclass(frozen=True)
class Size:
    """How much is measured at a scale."""

    seeds: int
    widths: tuple[int, ...]
    factors: tuple[float, ...]
    strengths: tuple[float, ...]
    rules: tuple[str, ...]
    prompts: int
    heads: int


def hopfield(size: Size, found: Mapping[str, Any]) -> Iterable[str]:
    """On Hopfield layers: writing, thresholds, strength, energy, noise, every operation."""
    yield "## Writing into a Hopfield layer"
    yield (
        f"{MEMORIES} random patterns of ±1 in {WIDTH} dimensions, W = PᵀP/d, β = 7, n = 3; {size.seeds} layers, a "
        "random target each. Hit: noisy starts that come back to the target; kept: to the memories; ± half the 95% "
        "interval of the mean over layers. At strength 0.5; the source's form converges first, and its kept share is "
        "that at the strength that destroys most. A cell agrees if it is within 5 points, or its interval reaches."
    )
    at, rows = size.strengths.index(0.5), []
    for way, (hit, kept) in EXPECTED.items():
        got = found["writing"][way]
        worst = min(got["kept"], key=lambda v: sum(v)) if way == "the source's" else got["kept"][at]
        rows.append((way, _share(got["hit"][at]), percent(hit), _share(worst), percent(kept)))
        rows[-1] += (_agrees((got["hit"][at], hit), (worst, kept)),)
    yield table(("written", "hit", "expected", "kept", "expected", "agrees"), rows, ".rrrr.")
    any_hit = max(max(hits) for hits in found["writing"]["the source's"]["hit"])
    yield (
        f"Converging first, the source's way, brings {'no start' if any_hit == 0 else 'some starts'} to the target at "
        f"any strength from {size.strengths[0]:g} to {size.strengths[-1]:g}: it deepens a basin that is there."
    )
    yield f"![Hits and kept memories by strength; hits by c = s √d]({FIGURES[0]}.svg)"
    yield "## How strong is strong enough"
    yield (
        f"Strength s = c/√d at which half, and 95%, of the starts come back ({2 * size.seeds} layers); the law is "
        "c = √(2 ln d). A width agrees if both are within 0.5 of the specification's."
    )
    rows = []
    for width in size.widths:
        rates = [sum(hits) / len(hits) for hits in found[f"threshold {width}"]["at the target"]["hit"]]
        crossed = [_crossing(size.factors, rates, level) for level in (0.5, 0.95)]
        near = [c is not None and abs(c - e) <= 0.5 for c, e in zip(crossed, THRESHOLDS[width], strict=True)]
        cells = [x for pair in zip(crossed, THRESHOLDS[width], strict=True) for x in pair]
        law = math.sqrt(2 * math.log(width))
        rows.append((str(width), f"{law:.2f}", *(NONE if x is None else f"{x:.1f}" for x in cells), _yes(all(near))))
    yield table(("d", "law", "50%", "expected", "95%", "expected", "agrees"), rows, "rrrrrr.")
    small = found["operations"]["inject at 0.1"]
    yield "## What strength 0.1 is"
    yield (
        "The source says that 0.1 changes the Frobenius norm by about 0.1%. Its own formula makes ‖ΔW‖ = 0.1 ‖W‖: "
        f"measured {percent(mean(r['norm'] for r in small))}, while ‖W‖ itself grows by "
        f"{percent(mean(r['growth'] for r in small))}; {percent(mean(r['after'] for r in small))} of the starts come "
        "back. `--strength 0.1` is that 10%; `--strength-unit percent` takes `--strength 10` for it."
    )
    yield from _energies(found["energies"])
    yield "## Noise"
    yield (
        "10% noise is ‖noise‖ = 0.1 ‖target‖ here; the source draws each coordinate with that standard deviation. "
        "Stored: starts at stored memories that come back. Needed: the smallest strength that makes a random target "
        "come back from every start, mean over the layers where one does."
    )
    rows = [
        (width, name, figure(c["size"]), percent(c["rate"]), _mean_percent(c["strength"]))
        for width, both in found["conventions"].items()
        for name, c in both.items()
    ]
    yield table(("d", "convention", "‖noise‖/‖target‖", "stored", "needed"), rows, "r.rrr")
    yield "## Every operation"
    yield (
        "Strengths found by search; strengthen and weaken by 2. Before and after: starts that come back, of a move "
        "at its source and at its destination. Others: the other memories, protected. Moved: cues that led elsewhere "
        "than the target and now lead somewhere else. Undone: the bits of the matrix are those of before."
    )
    rows = []
    for name, runs in found["operations"].items():
        if name == "inject at 0.1":
            continue
        cells = [mean(r["achieved"] for r in runs), mean(r["before"] for r in runs), mean(r["after"] for r in runs)]
        cells += [mean(r["kept"] for r in runs), mean(r["moved"] for r in runs)]
        norm = percent(mean(r["norm"] for r in runs))
        rows.append((name, _ranks(runs), norm, *map(percent, cells), _yes(all(r["undone"] for r in runs))))
    heads = ("operation", "rank", "‖ΔW‖/‖W‖", "achieved", "before", "after", "others", "moved", "undone")
    yield table(heads, rows, "..rrrrrr.")


def _energies(found: Mapping[str, Any]) -> Iterable[str]:
    words, ours, theirs = ENERGIES
    yield "## The energy"
    yield (
        "Steps of the dynamics that raise an energy, and its mean where random starts end and where they begin. The "
        "one with the right sign is E = -½ vᵀWv + (1/β) Σ ∫ artanh(t) f′(t) dt, v = f(x)."
    )
    rows = []
    for name, key, (end, start) in (("right", "", ours), ("the source's", "source_", theirs)):
        count = f"{found[f'{key}raised']} of {found['steps']:,}"
        values = f"{found[f'{key}basin']:.1f}", f"{found[f'{key}start']:.1f}"
        rows.append((name, count, words[f"{key}raised"], values[0], f"{end:.1f}", values[1], f"{start:.1f}"))
    yield table(("energy", "raised", "expected", "end", "expected", "start", "expected"), rows, ".rrrrrr")
    share, wanted = found["source_raised"] / found["steps"], 529 / 668
    yield (
        f"The right one {'never rises' if found['raised'] == 0 else 'rises at times'}; the source's rises in "
        f"{percent(share)} of the steps ({percent(wanted)} expected)."
    )
    yield f"![Both energies along the dynamics]({FIGURES[1]}.svg)"


def transformer(size: Size, found: Mapping[str, Any]) -> Iterable[str]:
    """On a language model: the MLP's rules, and attention heads."""
    asked = ", ".join(f"“{p}” → “{t.strip()}”" for p, t in zip(PROMPTS[: size.prompts], TOKENS, strict=False))
    yield "## A transformer's MLP"
    yield (
        f"Block {LAYER} of the bundled model; the output at a prompt's last token becomes what raises a word most "
        f"({asked}), with {len(OTHERS)} other prompts protected. Hit: noisy keys whose output has a cosine above 0.9 "
        "with the value. Drift: relative change of the block's output over 512 positions of stories; loss: the change "
        "of the model's cross-entropy on 16 of them, in nats; p: the word's probability, before and after. Means."
    )
    rows = []
    for rule in size.rules:
        runs = found[rule]
        losses, p = ([r["measures"][name] for r in runs] for name in ("cross-entropy", "p(token)"))
        rows.append(
            (
                *(rule, percent(mean(r["norm"] for r in runs)), percent(mean(r["after"] for r in runs))),
                *(f"{mean(r['cosine'] for r in runs):.3f}", percent(mean(r["drift"] for r in runs))),
                *(f"{mean(b - a for a, b in losses):+.4f}", f"{mean(a for a, _ in p):.4f}"),
                *(f"{mean(b for _, b in p):.4f}", f"{max(r['others'] for r in runs):.0e}"),
            )
        )
    heads = ("rule", "‖ΔW‖/‖W‖", "hit", "cosine", "drift", "loss", "p before", "p after", "protected change")
    yield table(heads, rows, ".rrrrrrrr")
    least = min(size.rules, key=lambda rule: mean(r["drift"] for r in found[rule]))
    yield f"Over ordinary text {least} changes the block's output least."
    yield "## Attention heads"
    yield (
        f"Heads of block {LAYER} of the same model, at the last token of “{PROMPTS[0]}”, by the rule rome. ov: the "
        f"head is to write what it writes at “{PROMPTS[1]}”. qk: it is to look at the position whose key is longest; "
        "hit: the mean of the keys under its softmax has a cosine above 0.9 with that key (less their own mean)."
    )
    rows = []
    for kind in ("ov", "qk"):
        runs = found[kind]
        seen = [r["measures"]["attention"] for r in runs if kind == "qk"]
        weight = f"{mean(a for a, _ in seen):.3f} → {mean(b for _, b in seen):.3f}" if seen else NONE
        losses = [r["measures"]["cross-entropy"] for r in runs]
        rows.append(
            (
                *(kind, f"{sum(r['achieved'] for r in runs)} of {len(runs)}"),
                *(percent(mean(r["norm"] for r in runs)), percent(mean(r["before"] for r in runs))),
                *(percent(mean(r["after"] for r in runs)), percent(mean(r["drift"] for r in runs))),
                *(f"{mean(b - a for a, b in losses):+.4f}", weight),
            )
        )
    heads = ("circuit", "achieved", "‖ΔW‖/‖W‖", "before", "hit", "drift", "loss", "attention")
    yield table(heads, rows, "..rrrrrr")


def mean(values: Iterable[float | None]) -> float:
    """The mean of what there is; NaN of nothing."""
    made = estimate(values)
    return math.nan if made is None else made.mean


def _mean_percent(values: Sequence[float | None]) -> str:
    made = estimate(values)
    return NONE if made is None else f"{percent(made.mean)} ({made.count} of {len(values)})"


def _share(values: Sequence[float]) -> str:
    made = estimate(values)
    assert made is not None
    return f"{100 * made.mean:.0f}%" + (f" ± {100 * made.half:.0f}" if made.half else "")


def _agrees(*pairs: tuple[Sequence[float], float]) -> str:
    made = [(estimate(values), wanted) for values, wanted in pairs]
    return _yes(all(m is not None and abs(m.mean - wanted) <= max(0.05, m.half or 0) for m, wanted in made))


def _yes(true: bool) -> str:
    return "yes" if true else "no"


def _ranks(runs: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(map(str, sorted({r["rank"] for r in runs})))


def _crossing(at: Sequence[float], rates: Sequence[float], level: float) -> float | None:
    """Where the rates first reach a level, between the points that were measured; None where they do not."""
    for i, rate in enumerate(rates):
        if rate >= level:
            if i == 0:
                return at[0]
            return at[i - 1] + (at[i] - at[i - 1]) * (level - rates[i - 1]) / (rate - rates[i - 1])
    return None
