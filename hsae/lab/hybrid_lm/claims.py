"""What the source says, against what was measured."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from hsae.figures import figure, percent
from hsae.lab.hybrid_lm.arms import ARMS, ORDERING
from hsae.lab.hybrid_lm.model import STD
from hsae.lab.hybrid_lm.plasticity import PRUNE, bound
from hsae.lab.hybrid_lm.training import NEAR

Run = dict[str, Any]  # what `train` gave
Runs = dict[str, dict[int, Run]]  # by arm and seed
# The source's losses, at each 500 steps.
SOURCE_HYBRID = (5.4532, 4.4821, 3.9390, 3.9110, 3.9010, 3.8990, 3.8957, 3.9079, 4.0390, 4.2777)
SOURCE_BACKPROP = (2.1419, 1.7619, 1.5748, 1.4642, 1.3890, 1.3351, 1.3032, 1.2787)
WITHIN = math.erf(PRUNE / STD / math.sqrt(2))  # P(|N(0, 0.02)| <= 0.01)
SAME = 0.01  # nats: a smaller difference is none


def diverged(run: Run) -> str:
    """At which step a training was seen to have diverged, in words; empty where it did not."""
    last = run["curve"][-1]
    return f"diverged by step {last['step']}" if last["loss"] is None else ""


def series(run: Run, key: str) -> tuple[list[int], list[float]]:
    """The steps of a curve, and a number at each; infinite where the training diverged."""
    values = (math.inf if point[key] is None else point[key] for point in run["curve"])
    return [point["step"] for point in run["curve"]], list(values)


def final(run: Run) -> float:
    """The last loss."""
    return series(run, "loss")[1][-1]


def best(run: Run) -> tuple[float, int]:
    """The lowest loss after the start, and its step."""
    steps, losses = series(run, "loss")
    return min(zip(losses[1:], steps[1:], strict=True))


def rise(run: Run) -> float:
    """By how much the last loss is above the lowest."""
    return final(run) - best(run)[0]


def by_loss(runs: Runs) -> list[tuple[str, Run]]:
    """Every arm at its first seed, the lowest last loss first."""
    firsts = [(name, next(iter(seeds.values()))) for name, seeds in runs.items() if name != "bdh"]
    return sorted(firsts, key=lambda each: (final(each[1]), each[0]))


def nats(loss: float, sign: str = "") -> str:
    """A loss, or with "+" a difference of two, in three decimals."""
    return f"{loss:{sign}.3f}" if math.isfinite(loss) else "diverged"


def claims(runs: Runs) -> Iterator[tuple[str, str, str, bool]]:
    """Sentences of the source, or what they come to: its figures, ours, and whether ours bear the sentence out.

    Of the arms that were trained and did not diverge; the first seed's where nothing else is said.
    """
    ends = list(zip(*([final(run) for run in runs[name].values()] for name in ORDERING), strict=True))
    right = sum(a < b < c for a, b, c in ends)
    here = f"{' < '.join(map(nats, ends[0]))}; on {right} of {len(ends)} seeds"
    theirs = "1.279 < 3.896; Hebb alone was skipped"
    yield "Backpropagation learns best, then hybrid, then Hebb alone", theirs, here, right == len(ends)
    if run := next(iter(runs.get("rate-1e-2-no-clamp", {}).values()), None):
        here = diverged(run) or f"loss {nats(final(run))}"
        yield "η_h = 0.01 without the clamp gives NaN", "immediately", here, bool(diverged(run))

    firsts = {name: next(iter(seeds.values())) for name, seeds in runs.items()}
    firsts = {name: run for name, run in firsts.items() if not diverged(run)}
    if not {"hybrid", "backprop"} <= set(firsts):
        return
    hybrid, backprop, many = firsts["hybrid"], firsts["backprop"], runs["hybrid"].values()
    start, last = hybrid["curve"][0], hybrid["curve"][-1]
    gain, ours = SOURCE_HYBRID[6] - SOURCE_BACKPROP[7], best(hybrid)[0] - best(backprop)[0]
    yield (
        '"67% lower loss (3× better perplexity)": the perplexities are 3 to 1',
        f"{gain / SOURCE_HYBRID[6]:.0%} lower; e^{gain:.3f} = {math.exp(gain):.1f}",
        f"{ours / best(hybrid)[0]:.0%} lower; e^{ours:.3f} = {math.exp(ours):.2f}",
        2.5 < math.exp(gain) < 3.5,
    )
    here = "; ".join(f"best at step {best(run)[1]}, then {nats(rise(run), '+')}" for run in many)
    so, theirs = all(rise(run) > SAME for run in many), "best at step 3500 of 5000, then +0.382"
    yield f"Hybrid passes its best loss and ends over {SAME} above it", theirs, here, so
    for name, words in (("constant-lr", "with AdamW's rate constant"), ("tied", "with η_h tied to AdamW's rate")):
        if run := firsts.get(name):
            loss, step = best(run)
            here = f"{nats(rise(run), '+')} (best {nats(loss)} at step {step}); cosine {nats(rise(hybrid), '+')}"
            so = rise(run) >= rise(hybrid) > SAME
            yield f"That is overfitting: the rise is no smaller {words}", "not tried", here, so
    falling = [n for n, arm in ARMS.items() if n in firsts and (arm.mode, arm.schedule) == ("hybrid", "cosine")]
    late, tied = ([rise(firsts[n]) > SAME for n in falling if ARMS[n].tied == tied] for tied in (False, True))
    if len(late) > 1 and tied:
        here = f"{sum(tied)} of {len(tied)} do; {sum(late)} of {len(late)} with η_h constant under the cosine"
        so = sum(tied) / len(tied) >= sum(late) / len(late) > 0
        yield f"With η_h tied, hybrid arms end over {SAME} above their best as often", "not tried", here, so
    here = f"{hybrid['calls']} calls, {len(hybrid['scaled'])} scalings"
    yield "Homeostatic scaling was tried", "5 calls, scaling on each 10th: it never ran", here, bool(hybrid["scaled"])
    for name, mode in (("scaling-runs", "hybrid"), ("backprop-scaling-runs", "backprop")):
        if name in firsts and firsts[name]["scaled"]:
            before, after = (firsts[name]["scaled"][0][key] for key in ("before", "after"))
            sizes = f"{figure(before['mean'])} → {figure(after['mean'])}, {after['mean'] / before['mean']:.3g}×"
            here, so = f"{nats(before['loss'])} → {nats(after['loss'])}", after["loss"] < before["loss"] + SAME
            yield f"Run at its first call, it does not hurt ({mode})", "0.016 → 0.5, 30×", f"{sizes}; loss {here}", so
    yield (
        "Clamp and decay hold the weights: their mean size grows less than tenfold",
        f"bound {bound(1e-3, 0.9999, 5000):.2f} at step 5000, {bound(1e-3, 0.9999, 10**6):.0f} in the end",
        f"mean {figure(start['mean'])} → {figure(last['mean'])}, largest {figure(last['max'])}; bound "
        f"{last['bound']:.2f}, {percent(last['at_bound'])} of the weights above {NEAR} of it",
        last["mean"] < 10 * start["mean"],
    )
    one, other = ([percent(run["collapse"][key]) for key in ("share", "signs")] for run in (hybrid, backprop))
    here = f"{one[0]}, with {one[1]} of the signs; backprop {other[0]}, {other[1]}"
    so = hybrid["collapse"]["share"] < 0.5
    yield "A layer's first singular direction holds less than half of ‖W‖²", "not measured", here, so
    zeros, dense = backprop["sparsity"], hybrid["sparsity"]
    here, theirs = f"{percent(zeros['all'])} and {percent(dense['all'])}", "8.26% and 0.00% of all weights"
    so = zeros["all"] > 0.05 > 10 * dense["all"]
    yield "Pruning leaves backpropagation sparse, and hybrid dense", theirs, here, so
    yield (
        "It finds inactive weights: its share is over 10 points from that within ±0.01 at the start",
        f"42% of the layers; {percent(WITHIN)} of N(0, {STD})",
        f"{percent(zeros['layers'])}; {percent(start['small'])}",
        abs(zeros["layers"] - start["small"]) > 0.1,
    )
    if run := firsts.get("all-batches"):
        here = f"the last alone {nats(final(hybrid))}, all rows {nats(final(run))}"
        so = final(hybrid) < final(run) + SAME
        yield "The last micro-batch, 1/8 of the data, serves Hebb as well", "not tried", here, so
