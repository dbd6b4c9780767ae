"""The chapter on surgery: every claim of the source measured, beside earlier measurements of ours. Every verdict
follows from the numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsae.canvas import PALETTE, canvas
from hsae.figures import NONE, percent
from hsae.intervals import estimate
from hsae.lab.chapter import Chapter, command_of
from hsae.lab.surgery import SurgeryConfig
from hsae.lab.surgery.experiments import MEMORIES, OTHERS, PROMPTS, TOKENS, WAYS, source
from hsae.lab.units import Unit, computed
from hsae.sharing.markdown import table

if TYPE_CHECKING:
    from rich.console import Console

TITLE = "Surgery: write, erase and move memories"
STRENGTHS = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0)
FACTORS = (1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0)
RULES, LAYER, WIDTH = ("hebbian", "delta", "rome", "null-space"), 3, 64
# What we measured before: shares at strength 0.5 (the source's: kept at the strength that destroys most), the factors c
# of s = c/√d at which half and 95% come back; of each energy, the steps that raise it, its mean at ends and starts.
SHARES = {"at the target": (1.0, 0.99), "at the target, projected": (1.0, 1.0), "the source's": (0.0, 0.52)}
THRESHOLDS = {64: (2.5, 3.0), 144: (2.9, 4.0), 256: (3.7, 5.0)}
ENERGIES = {"right": ("0 of 668", -26.2, 0.9), "source": ("529 of 668", 14.0, -2.3)}


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


SIZES = {
    "tiny": Size(1, (64,), (2.0, 4.0), (0.1, 0.5), ("rome",), 1, 1),
    "small": Size(10, (64, 144, 256), FACTORS, STRENGTHS, RULES, 4, 8),
    "full": Size(50, (64, 144, 256), FACTORS, STRENGTHS, RULES, 4, 16),
}


def chapter(settings: SurgeryConfig, out: Path, console: Console | None) -> Chapter:
    """Compute what is missing, draw, and say it."""
    size = SIZES[settings.scale]
    found = computed(_units(size, settings), out / "units", console, "surgery", settings.workers)
    _draw(out, size, found)
    parts = (*_hopfield(size, found), *_transformer(size, found), found["saes"]["text"].replace("### ", "## "))
    return Chapter(TITLE, "\n\n".join(parts), found, command_of("lab surgery", settings))


def _units(size: Size, settings: SurgeryConfig) -> list[Unit]:
    seed, code, asked = settings.seed or 0, source(), list[Unit]()
    seeds = list(range(seed, seed + size.seeds))

    def ask(name: str, function: str, **arguments: Any) -> None:
        asked.append(Unit(name, f"hsae.lab.surgery.experiments:{function}", {**arguments, "code": code}))

    ask("writing", "writing", width=WIDTH, strengths=list(size.strengths), ways=list(WAYS), seeds=seeds)
    ask("energies", "energies", width=WIDTH, seeds=seeds)
    ask("operations", "operations", width=WIDTH, seeds=seeds)
    ask("saes", "saes", scale=settings.scale, seed=seed)
    for width in size.widths:
        strengths, twice = [c / math.sqrt(width) for c in size.factors], list(range(seed, seed + 2 * size.seeds))
        name = f"threshold {width}"
        ask(name, "writing", width=width, strengths=strengths, ways=["at the target"], seeds=twice)
    for kind, rule in _edits(size):
        count = size.prompts if kind == "mlp" else size.heads
        ask(f"{kind} {rule}", "language_model", kind=kind, rule=rule, layer=LAYER, count=count)
    return asked


def _draw(out: Path, size: Size, found: Mapping[str, Any]) -> None:
    with canvas(out, "surgery-strength", 1, 2, 2.9) as (_, (left, right)):
        for colour, (way, got) in zip(PALETTE, found["writing"].items(), strict=False):
            for name, style in (("hit", "-"), ("kept", ":")):
                means = [_mean(values) for values in got[name]]
                label = way.removeprefix("at the target, ") if name == "hit" else None
                left.plot(size.strengths, means, style, marker=".", color=colour, label=label)
        left.set(xscale="log", xlabel="strength ‖ΔW‖/‖W‖", ylabel="starts that come back", ylim=(-0.03, 1.03))
        left.set_title("solid: to the target; dotted: to the memories")
        left.legend(fontsize=7, loc="center left")
        for colour, width in zip(PALETTE, size.widths, strict=False):
            means = [_mean(values) for values in found[f"threshold {width}"]["at the target"]["hit"]]
            right.plot(size.factors, means, marker=".", color=colour, label=f"d = {width}")
            right.axvline(math.sqrt(2 * math.log(width)), color=colour, linestyle=":", linewidth=1)
        right.set(xlabel="c = strength × √d", ylim=(-0.03, 1.03))
        right.set_title("dotted: the law √(2 ln d)")
        right.legend(fontsize=7)
    with canvas(out, "surgery-energy", 1, 2, 2.4) as (_, panels):
        for panel, key, name in zip(panels, ("right", "source"), ("right", "the source's"), strict=True):
            panel.plot(found["energies"][key]["course"][:40], color=PALETTE[0])
            panel.set(xlabel="step")
            panel.set_title(f"energy, {name} sign")


def _hopfield(size: Size, found: Mapping[str, Any]) -> Iterator[str]:
    yield "## Writing into a Hopfield layer"
    yield (
        f"{MEMORIES} random patterns of ±1 in {WIDTH} dimensions, W = PᵀP/d, β = 7, n = 3; {size.seeds} layers, a "
        "random target each. Hit: noisy starts that come back to the target; kept: to the memories; ± half the 95% "
        "interval of the mean over layers. At strength 0.5; the source's form converges first, and its kept share is "
        "that at the strength that destroys most. A cell agrees if it is within 5 points, or its interval reaches. "
        "*Measured before* is, here and below, by us: the source gives no figures."
    )
    at, rows = size.strengths.index(0.5), []
    for way, (hit, kept) in SHARES.items():
        got = found["writing"][way]
        worst = min(got["kept"], key=sum) if way == "the source's" else got["kept"][at]
        agrees = _agrees(got["hit"][at], hit) and _agrees(worst, kept)
        rows.append((way, _share(got["hit"][at]), percent(hit), _share(worst), percent(kept), _yes(agrees)))
    yield table(("written", "hit", "measured before", "kept", "measured before", "agrees"), rows, ".rrrr.")
    any_hit = max(max(hits) for hits in found["writing"]["the source's"]["hit"])
    yield (
        f"Converging first, the source's way, brings {'no start' if any_hit == 0 else 'some starts'} to the target at "
        f"any strength from {size.strengths[0]:g} to {size.strengths[-1]:g}: it deepens a basin that is there."
    )
    yield "![Hits and kept memories by strength; hits by c = s √d](surgery-strength.svg)"
    yield "## How strong is strong enough"
    yield (
        f"Strength s = c/√d at which half, and 95%, of the starts come back ({2 * size.seeds} layers); the law is "
        "c = √(2 ln d). A width agrees if both are within 0.5 of what was measured before."
    )
    rows = []
    for width in size.widths:
        rates = [sum(hits) / len(hits) for hits in found[f"threshold {width}"]["at the target"]["hit"]]
        pairs = [(_crossing(size.factors, rates, y), c) for y, c in zip((0.5, 0.95), THRESHOLDS[width], strict=True)]
        cells = [NONE if x is None else f"{x:.1f}" for pair in pairs for x in pair]
        near = all(got is not None and abs(got - c) <= 0.5 for got, c in pairs)
        rows.append((str(width), f"{math.sqrt(2 * math.log(width)):.2f}", *cells, _yes(near)))
    yield table(("d", "law", "50%", "measured before", "95%", "measured before", "agrees"), rows, "rrrrrr.")
    weak = found["operations"]["inject at 0.1"]
    yield "## What strength 0.1 is"
    yield (
        "The source says that 0.1 changes the Frobenius norm by about 0.1%. Its own formula makes ‖ΔW‖ = 0.1 ‖W‖: "
        f"measured {_percent(weak, 'norm')}, while ‖W‖ itself grows by {_percent(weak, 'growth')}; "
        f"{_percent(weak, 'after')} of the starts come back. `--strength 0.1` is that 10%; `--strength-unit percent` "
        "takes `--strength 10` for it."
    )
    yield "## The energy"
    yield (
        "Steps of the dynamics that raise an energy, and its mean where random starts end and where they begin. The "
        "one with the right sign is E = -½ vᵀWv + (1/β) Σ ∫ artanh(t) f′(t) dt, v = f(x)."
    )
    steps, rows = found["energies"]["steps"], []
    for key, name in (("right", "right"), ("source", "the source's")):
        got, (raised, end, start) = found["energies"][key], ENERGIES[key]
        count, course = f"{got['raised']} of {steps:,}", got["course"]
        rows.append((name, count, raised, f"{course[-1]:.1f}", f"{end:.1f}", f"{course[0]:.1f}", f"{start:.1f}"))
    heads = ("energy", "raised", "measured before", "end", "measured before", "start", "measured before")
    yield table(heads, rows, ".rrrrrr")
    yield (
        f"The right one {'rises at times' if found['energies']['right']['raised'] else 'never rises'}; the source's "
        f"rises in {percent(found['energies']['source']['raised'] / steps)} of the steps."
    )
    yield "![Both energies along the dynamics](surgery-energy.svg)"
    yield "## Every operation"
    yield (
        "Strengths found by search; strengthen and weaken by 2. Before and after: starts that come back, of a move "
        "at its source and at its destination. Others: the other memories, protected. Moved: cues that led elsewhere "
        "than the target and now lead somewhere else. Undone: the bits of the matrix are those of before."
    )
    rows = []
    for name, runs in found["operations"].items():
        if runs is not weak:
            ranks, undone = sorted({str(r["rank"]) for r in runs}), all(r["undone"] for r in runs)
            cells = [_percent(runs, each) for each in ("norm", "achieved", "before", "after", "kept", "moved")]
            rows.append((name, ", ".join(ranks), *cells, _yes(undone)))
    heads = ("operation", "rank", "‖ΔW‖/‖W‖", "achieved", "before", "after", "others", "moved", "undone")
    yield table(heads, rows, "..rrrrrr.")


def _transformer(size: Size, found: Mapping[str, Any]) -> Iterator[str]:
    asked = ", ".join(f"“{p}” → “{t.strip()}”" for p, t in zip(PROMPTS[: size.prompts], TOKENS, strict=False))
    yield "## In a language model"
    yield (
        f"Block {LAYER} of the bundled model, mean over prompts or heads. mlp: the output at a prompt's last token "
        f"becomes what raises a word most ({asked}), {len(OTHERS)} other prompts protected. ov: a head is to write at "
        f"the end of “{PROMPTS[0]}” what it writes at that of “{PROMPTS[1]}”. qk: it is to look from there at the "
        "position whose key is longest; the output is the mean of the keys under its softmax, less their own mean. "
        "Before, hit: noisy cues whose output has a cosine above 0.9 with the value. Drift: relative change of the "
        "output over 512 positions of stories; loss: change of the model's cross-entropy on 16 stories, in nats. "
        "Watched: the word's probability, or the attention to the position. Others: the largest relative change of a "
        "protected output."
    )
    rows = []
    for kind, rule in _edits(size):
        runs = found[f"{kind} {rule}"]
        (clean, loss), others = _measured(runs, "cross-entropy"), [r["others"] for r in runs if kind == "mlp"]
        name = {"mlp": "p(token)", "qk": "attention"}.get(kind)
        cells = [_percent(runs, head) for head in ("norm", "before", "after", "drift")]
        watched = NONE if name is None else "{:.3f} → {:.3f}".format(*_measured(runs, name))
        cells += [f"{loss - clean:+.4f}", watched, f"{max(others):.0e}" if others else NONE]
        rows.append((f"{kind}, {rule}", *cells))
    yield table(("written", "‖ΔW‖/‖W‖", "before", "hit", "drift", "loss", "watched", "others"), rows, ".rrrrrrr")
    least = min(size.rules, key=lambda rule: _mean(r["drift"] for r in found[f"mlp {rule}"]))
    yield f"Of the MLP's rules, {least} changes the block's output over ordinary text least."


def _edits(size: Size) -> Iterator[tuple[str, str]]:
    """What is edited in a language model, and by which rule."""
    yield from (("mlp", rule) for rule in size.rules)
    yield from (("ov", "rome"), ("qk", "rome"))


def _mean(values: Iterable[float | None]) -> float:
    """The mean of what there is; NaN of nothing."""
    made = estimate(values)
    return math.nan if made is None else made.mean


def _percent(runs: Sequence[Mapping[str, Any]], name: str) -> str:
    return percent(_mean(r[name] for r in runs))


def _measured(runs: Sequence[Mapping[str, Any]], name: str) -> tuple[float, float]:
    """A further number of the memory, before and after."""
    before, after = zip(*(r["measures"][name] for r in runs), strict=True)
    return _mean(before), _mean(after)


def _share(values: Sequence[float]) -> str:
    made = estimate(values)
    assert made is not None
    return f"{100 * made.mean:.0f}%" + (f" ± {100 * made.half:.0f}" if made.half else "")


def _agrees(values: Sequence[float], before: float) -> bool:
    made = estimate(values)
    return made is not None and abs(made.mean - before) <= max(0.05, made.half or 0)


def _yes(true: bool) -> str:
    return "yes" if true else "no"


def _crossing(at: Sequence[float], rates: Sequence[float], level: float) -> float | None:
    """Where the rates first reach a level, between the points that were measured; None where they do not."""
    for i, rate in enumerate(rates):
        if rate >= level:
            if i == 0:
                return at[0]
            return at[i - 1] + (at[i] - at[i - 1]) * (level - rates[i - 1]) / (rate - rates[i - 1])
    return None
