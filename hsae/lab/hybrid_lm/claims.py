"""What the source says, against what was measured."""

from __future__ import annotations

import math
from typing import Any

from hsae.figures import figure, percent
from hsae.lab.hybrid_lm.arms import ARMS, ORDERING
from hsae.lab.hybrid_lm.model import STD
from hsae.lab.hybrid_lm.plasticity import PRUNE, bound
from hsae.lab.hybrid_lm.training import NEAR

Run = dict[str, Any]  # what `train` gave
Runs = dict[str, dict[int, Run]]  # by arm and seed
STEPS = tuple(range(500, 5001, 500))
HYBRID = (5.4532, 4.4821, 3.9390, 3.9110, 3.9010, 3.8990, 3.8957, 3.9079, 4.0390, 4.2777)
BACKPROP = (2.1419, 1.7619, 1.5748, 1.4642, 1.3890, 1.3351, 1.3032, 1.2787)
SOURCE = {"backprop": [*zip(STEPS, BACKPROP, strict=False)], "hybrid": [*zip(STEPS, HYBRID, strict=True)]}
WITHIN = math.erf(PRUNE / STD / math.sqrt(2))  # P(|N(0, 0.02)| <= 0.01)
SAME = 0.01  # nats: a smaller difference is none


def at(point: dict[str, Any]) -> float:
    """A point's loss; infinite where the training broke."""
    return math.inf if point["loss"] is None else point["loss"]


def final(run: Run) -> float:
    """The last loss."""
    return at(run["curve"][-1])


def best(run: Run) -> tuple[float, int]:
    """The lowest loss after the start, and its step."""
    return min((at(point), point["step"]) for point in run["curve"][1:])


def rise(run: Run) -> float:
    """By how much the last loss is above the lowest."""
    return final(run) - best(run)[0]


def nats(value: float) -> str:
    """A loss in three decimals."""
    return f"{value:.3f}" if math.isfinite(value) else "NaN"


def claims(runs: Runs) -> list[tuple[str, str, str, bool]]:
    """Sentences of the source, or what they come to: its figures, ours, and whether ours bear the sentence out.

    Of the arms that were trained; the first seed's where nothing else is said.
    """
    found: list[tuple[str, str, str, bool]] = []

    def say(sentence: str, theirs: str, here: str, so: bool) -> None:
        found.append((sentence, theirs, here, so))

    firsts = {name: next(iter(seeds.values())) for name, seeds in runs.items()}
    hybrid, backprop, many = firsts["hybrid"], firsts["backprop"], list(runs["hybrid"].values())
    start, last = hybrid["curve"][0], hybrid["curve"][-1]
    ends = [[final(runs[name][seed]) for name in ORDERING] for seed in runs["hybrid"]]
    ordered = sum(a < b < c for a, b, c in ends)
    say(
        "Backpropagation learns best, then hybrid, then Hebb alone",
        "1.279 < 3.896; Hebb alone was skipped",
        f"{' < '.join(map(nats, ends[0]))}; on {ordered} of {len(ends)} seeds",
        ordered == len(ends),
    )
    theirs, ours = HYBRID[6] - BACKPROP[7], best(hybrid)[0] - best(backprop)[0]
    say(
        '"67% lower loss (3× better perplexity)": the perplexities are 3 to 1',
        f"{theirs / HYBRID[6]:.0%} lower; e^{theirs:.3f} = {math.exp(theirs):.1f}",
        f"{ours / best(hybrid)[0]:.0%} lower; e^{ours:.3f} = {math.exp(ours):.2f}",
        2.5 < math.exp(theirs) < 3.5,
    )
    say(
        f"Hybrid passes its best loss and ends over {SAME} above it",
        "best at step 3500 of 5000, then +0.382",
        "; ".join(f"best at step {best(run)[1]}, then {rise(run):+.3f}" for run in many),
        all(rise(run) > SAME for run in many),
    )
    for name, words in (("constant-lr", "with AdamW's rate constant"), ("tied", "with η_h tied to AdamW's rate")):
        if run := firsts.get(name):
            here = f"{rise(run):+.3f} (best {nats(best(run)[0])} at step {best(run)[1]}); cosine {rise(hybrid):+.3f}"
            so = rise(run) >= rise(hybrid) > SAME
            say(f"That is overfitting: the rise is no smaller {words}", "not tried", here, so)
    falling = [n for n, arm in ARMS.items() if n in runs and (arm.mode, arm.schedule) == ("hybrid", "cosine")]
    for tied, words in ((False, "Under the cosine"), (True, "With η_h tied to it")):
        rises = [rise(firsts[n]) for n in falling if ARMS[n].tied == tied and final(firsts[n]) < math.inf]
        if len(rises) > 1:
            late = sum(each > SAME for each in rises)
            here = f"{late} of {len(rises)}, by up to {max(rises):.3f}"
            theirs = "not tried" if tied else "hybrid: +0.382"
            say(f"{words}, most hybrid arms end over {SAME} above their best", theirs, here, 2 * late > len(rises))
    say(
        "Homeostatic scaling was tried",
        "5 calls, scaling on each 10th: it never ran",
        f"{hybrid['calls']} calls, {len(hybrid['scaled'])} scalings",
        bool(hybrid["scaled"]),
    )
    for name, mode in (("scaling-runs", "hybrid"), ("backprop-scaling-runs", "backprop")):
        if name in firsts and firsts[name]["scaled"]:
            before, after = (firsts[name]["scaled"][0][key] for key in ("before", "after"))
            sizes = f"{figure(before['mean'])} → {figure(after['mean'])}, {after['mean'] / before['mean']:.3g}×"
            here = f"{sizes}; loss {nats(at(before))} → {nats(at(after))}"
            so = at(after) < at(before) + SAME
            say(f"Run at its first call, it does not hurt ({mode})", "0.016 → 0.5, 30×", here, so)
    say(
        "Clamp and decay hold the weights: their mean size grows less than tenfold",
        f"bound {bound(1e-3, 0.9999, 5000):.2f} at step 5000, {bound(1e-3, 0.9999, 10**6):.0f} in the end",
        f"mean {figure(start['mean'])} → {figure(last['mean'])}, largest {figure(last['max'])}; bound "
        f"{last['bound']:.2f}, {percent(last['at_bound'])} of the weights above {NEAR} of it",
        last["mean"] < 10 * start["mean"],
    )
    if hybrid["collapse"] and backprop["collapse"]:
        one, other = ((percent(c["share"]), percent(c["signs"])) for c in (hybrid["collapse"], backprop["collapse"]))
        here = f"{one[0]}, with {one[1]} of the signs; backprop {other[0]}, {other[1]}"
        so = hybrid["collapse"]["share"] < 0.5
        say("A layer's first singular direction holds less than half of ‖W‖²", "not measured", here, so)
    zeros = {name: firsts[name]["sparsity"] for name in ("backprop", "hybrid")}
    say(
        "Pruning leaves backpropagation sparse, and hybrid dense",
        "8.26% and 0.00% of all weights",
        " and ".join(percent(z["all"]) for z in zeros.values()),
        zeros["backprop"]["all"] > 0.05 > 10 * zeros["hybrid"]["all"],
    )
    say(
        "It finds inactive weights: its share is over 10 points from that within ±0.01 at the start",
        f"42% of the layers; {percent(WITHIN)} of N(0, {STD})",
        f"{percent(zeros['backprop']['layers'])}; {percent(start['small'])}",
        abs(zeros["backprop"]["layers"] - start["small"]) > 0.1,
    )
    if "all-batches" in firsts:
        both = final(hybrid), final(firsts["all-batches"])
        here = f"the last alone {nats(both[0])}, all rows {nats(both[1])}"
        say("The last micro-batch, 1/8 of the data, serves Hebb as well", "not tried", here, both[0] < both[1] + SAME)
    if run := firsts.get("rate-1e-2-no-clamp"):
        so = final(run) == math.inf
        here = f"by step {run['curve'][-1]['step']}" if so else f"loss {nats(final(run))}"
        say("η_h = 0.01 without the clamp gives NaN", "immediately", here, so)
    return found
