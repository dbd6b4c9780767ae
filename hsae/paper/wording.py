"""Sentences that choose their words by the numbers: the answers to what the paper leaves open."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from hsae.figures import fraction, scientific
from hsae.paper.claims import number
from hsae.paper.measure import Deciles, Fall
from hsae.paper.moments import Moment
from hsae.paper.published import (
    LATENTS,
    STEPS,
    TABLE_1,
    TEMPERATURE,
    TITLES,
    VARIANCE,
    WIDTH,
)
from hsae.paper.statistics import implied, tail

NAMES = {"mse": "MSE", "evr": "EVR", "l1": "L1", "l0": "L0"}


@dataclass(frozen=True)
class End:
    """How a SoftHebb setup ended: L0 and dictionary over the held-out tokens."""

    l0: float
    dictionary: float


def collapse(
    end: End | None, others: Mapping[str, End | None], latents: int, tokens: int, share: float, cosine: float
) -> str:
    """Question (a), first half: do rows of unit norm end with next to no latents, and what prevents it?

    Args:
        end: of the unit-norm rows.
        others: how the variations ended, by what was changed.
        latents: size of the dictionary.
        tokens: that `dictionary` was counted on.
        share: of the tokens that the commonest winner wins; `cosine`: of its row with the mean activation.
    """
    if end is None:
        return "Rows of unit norm were not measured: they diverged."
    counted = f"{number('dictionary', end.dictionary)} of {latents:,} latents on {tokens:,} tokens (L0 {end.l0:.2f})"
    wins = f"the commonest winner takes {share:.0%} of the tokens, its row has cosine {cosine:.2f} with the mean"
    collapsed = end.dictionary < 0.05 * latents
    said = [
        f"SoftHebb from rows of unit norm ends with {counted}: "
        + ("the collapse is there" if collapsed else "there is no collapse here")
        + f". At the end {wins}"
        + (
            ", so one row has become the mean direction and wins by it."
            if share > 0.5 and cosine > 0.9
            else ", so the mean direction alone does not decide who wins."
        )
    ]
    helped, not_helped = [], []
    for change, other in others.items():
        if other is None:
            continue
        dense = ", so nearly all fire always" if other.l0 > 0.1 * latents else ""
        words = f"{change} ({number('dictionary', other.dictionary)} latents, L0 {other.l0:.2f}{dense})"
        better = other.dictionary > max(3 * end.dictionary, 0.05 * latents)
        (helped if better else not_helped).append(words)
    if collapsed:
        said.append(f"What prevents it: {'; '.join(helped)}." if helped else "None of the variations prevents it.")
        if not_helped:
            said.append(f"What does not: {'; '.join(not_helped)}.")
    elif others:
        said.append(f"The variations: {'; '.join(helped + not_helped)}.")
    return " ".join(said)


def drive(std: float, norm: float, norm_of_mean: float, latents: int) -> str:
    """Question (a), second half: the drive at the start against the bias, and what the paper's line implies."""
    prior = math.log(latents) / TEMPERATURE
    z = prior / (std * norm)
    expected = latents * tail(z)
    paper = implied(TABLE_1["hebb-tied"].mean("l0"), TABLE_1["hebb-tied"].mean("l1"), LATENTS, WIDTH, TEMPERATURE)
    low, high = sorted((paper.drive_at_prior / norm, paper.drive / norm))
    return (
        f"At the start a drive w·x has the standard deviation init_std·‖x‖ = {std * norm:.3f} (median ‖x‖ {norm:.3f}; "
        f"the mean activation's norm is {norm_of_mean:.3f}, {norm_of_mean / norm:.0%} of it), and the log-prior bias "
        f"is {-prior:.3f}, {z:.1f} standard deviations: {expected:.2g} latents are expected to fire on a median token, "
        + ("so the bias all but silences the layer. " if expected < 1 else "so the bias does not silence the layer. ")
        + f"The paper's line (L0 22.3, L1 1.17e-2: {paper.each:.3f} for each active latent) means, for normal drives, "
        f"a standard deviation of {paper.drive:.3f} and a threshold of {paper.threshold:.3f}; or of "
        f"{paper.drive_at_prior:.3f} if the bias is where it started. With activations of this store's norm that is an "
        f"init_std of {low:.2f} to {high:.2f} (rows of norm {low * math.sqrt(WIDTH):.1f} to "
        f"{high * math.sqrt(WIDTH):.1f} at width {WIDTH}), or, with the smaller init_std of .125, activations "
        f"{low / 0.125:.1f} to {high / 0.125:.1f} times as long."
    )


def heavy_tail(evr: float, pooled: float, parts: Deciles | None, passing: Moment | None, heaviest: float) -> str:
    """Question (b): what makes a per-token EVR of -.52 sit beside an MSE thirteen times the variance?"""
    theirs = TABLE_1["hebb-tied"]
    mse, ratio = scientific(theirs.mean("mse")), fraction(theirs.mean("evr"))
    gap = evr - pooled > max(0.5, abs(evr))
    said = [
        f"The paper's MSE of {mse} over the variance that its BP line implies ({scientific(VARIANCE)}) is a pooled EVR "
        f"of {1 - theirs.mean('mse') / VARIANCE:.1f}; its EVR of {ratio} is a mean of per-token ratios. Both are true "
        f"only if a few tokens, far from the mean, carry most of the error. Here Hebb Tied ends at {fraction(evr)} per "
        f"token and {fraction(pooled)} pooled: " + ("the same gap." if gap else "no such gap.")
    ]
    if parts is not None:
        rest = sum(parts.evr[:-1]) / max(1, len(parts.evr) - 1)
        long = parts.top_norm > 0.1
        said.append(
            f"The 1% of tokens with the largest norm hold {parts.top_norm:.1%} of the squared error, the longest tenth "
            f"{parts.share[-1]:.0%} (with EVR {fraction(parts.evr[-1])}, the other tokens {fraction(rest)}), and the "
            f"1% with the largest error {parts.top_error:.1%}; the longest token is {heaviest:.1f} times the median. "
            + ("So the error is that of the long tokens" if long else "So the error is not that of the long tokens")
            + {
                (True, True): ", and they make the gap.",
                (True, False): ", but they are not long enough here for the paper's gap.",
                (False, True): ": what makes the gap is not the norm.",
                (False, False): ", and norms here have no tail that could make the paper's gap.",
            }[long, gap]
        )
    if passing is not None and {"evr", "evr_pooled"} <= {*passing.metrics}:
        there, at = passing.metrics, passing.metrics["mse"]
        near, alike = 0.5 < at / theirs.mean("mse") < 2, abs(there["evr"] - theirs.mean("evr")) < 0.5
        said.append(
            f"On its way Hebb Tied came nearest to the paper's MSE at step {passing.step:,}: MSE {scientific(at)}, EVR "
            f"{fraction(there['evr'])} per token, {fraction(there['evr_pooled'])} pooled; "
            + (
                "it was never near."
                if not near
                else "there the paper's pair is met."
                if alike
                else "at that MSE the per-token EVR is another, so the paper's norms are spread more widely than these."
            )
        )
    return " ".join(said)


def nan_cause(
    diverged: Mapping[str, Mapping[int, str]], falls: Mapping[str, Fall], due: Mapping[str, float | None], seeds: int
) -> str:
    """Question (c): which setups became NaN, and whether the bias' arithmetic is the cause.

    Args:
        diverged: for each setup, when and why each seed did.
        falls: how each setup's lowest bias falls.
        due: for each setup, its bias_lr.
        seeds: how many there were.
    """
    became = [name for name, reasons in diverged.items() if reasons]
    said = [f"Diverged: {', '.join(became)}." if became else "Nothing diverged in this length of training."]
    slow = falls.get("hebb-tied-official") or falls.get("hebb-tied")
    quick = falls.get("hebb-tied-official-rate-1") or falls.get("hebb-tied-rate-1")
    for fall, rate in ((slow, "the paper's rate, 0.1"), (quick, "the official code's, 1")):
        if fall is None:
            continue
        said.append(f"With bias_lr at {rate}, the lowest bias falls by {scientific(-fall.slope)} a step")
        if fall.underflow is None:
            said[-1] += ": it does not fall, so nothing underflows."
        else:
            within = "within" if fall.underflow <= STEPS else "beyond"
            said[-1] += f" and passes -2.066 at step {fall.underflow:,.0f}, {within} the paper's {STEPS:,} steps."
    ends = [None if fall is None or fall.underflow is None else fall.underflow <= STEPS for fall in (slow, quick)]
    if ends == [False, True]:
        said.append(
            "So underflow explains the paper's NaN only if its bias learnt at the official code's rate, not at the "
            "stated one."
        )
    elif ends == [True, True]:
        said.append("So underflow explains the paper's NaN at either rate.")
    elif True not in ends:
        said.append("So underflow would explain the paper's NaN at neither rate.")
    official, log = "hebb-tied-official-fast", "hebb-tied-fast"
    if official in diverged and log in diverged:
        rate = due.get(official)
        sped = f"With the bias sped up (bias_lr {rate:.3g})" if rate is not None else "With the bias sped up"
        first = next(iter(diverged[official].values()), "")
        if diverged[official] and not diverged[log]:
            said.append(
                f"{sped} the official arithmetic became NaN on {len(diverged[official])} of {seeds} seeds "
                f"({first.split(';')[0]}) and the logarithmic one on none: the cause is e^(τb) underflowing to 0 in "
                "float32, not the rule."
            )
        elif not diverged[official]:
            said.append(f"{sped} the official arithmetic did not become NaN: the mechanism is not shown here.")
        else:
            said.append(f"{sped} both arithmetics diverged: something besides the underflow is at work.")
    literal = diverged.get("hebb-tied-official-literal")
    if literal:
        said.append(
            "From the bias that the appendix prints, τ/ln(τ/K), the official arithmetic diverged "
            f"{next(iter(literal.values())).split(';')[0]}: that formula cannot be what the paper ran."
        )
    return " ".join(said)


def explanation(cosines: Mapping[str, float | None]) -> str:
    """The paper's section 6: does the Hebbian part descend the MSE, the anti-Hebbian one L1 and L2?

    Args:
        cosines: of the parts with the descent of each, means over training, as `hsae.diagnostics` names them.
    """
    parts = {
        "hebbian_cos_mse": "the Hebbian part descends the MSE",
        "anti_cos_l1": "the anti-Hebbian part descends L1",
        "anti_cos_l2": "the anti-Hebbian part descends L2",
    }
    said = []
    for name, claim in parts.items():
        value = cosines.get(name)
        if value is not None:
            holds = "holds" if value > 0.1 else "does not hold" if value < -0.1 else "is undecided"
            said.append(f"that {claim} {holds} (cosine {value:.2f})")
    whole = cosines.get("cos_mse")
    if not said:
        return ""
    end = (
        ""
        if whole is None
        else f" The whole update, with its decay, has cosine {whole:.2f} with the descent of the MSE."
    )
    return f"The paper's explanation, over the whole training: {'; '.join(said)}.{end}"


def tied_by_scale(evr: Mapping[float, float], kaiming: float | None) -> str:
    """Question (d): is BP Tied's failure the scale of its initial weights?

    Args:
        evr: final EVR by init_std.
        kaiming: EVR from PyTorch's default.
    """
    if not evr:
        return "BP Tied was not measured."
    best, worst = max(evr, key=lambda s: evr[s]), min(evr, key=lambda s: evr[s])
    ends = f"best, {fraction(evr[best])}, from init_std {best:.3g} and worst, {fraction(evr[worst])}, from {worst:.3g}"
    said = f"BP Tied's EVR is {ends}"
    if evr[best] - evr[worst] < 0.1:
        said += ": it does not depend on the scale, so something else made it fail in the paper."
    elif worst > best:
        said += ": beyond that it falls as the scale grows, so at this length of training the scale decides."
    else:
        said += ": it fails when the scale is too small, which is not what the paper describes."
    if kaiming is not None:
        wanted = "above .9, as the paper says" if kaiming > 0.9 else "not yet the paper's “> 90%”"
        said += f" From PyTorch’s default it reaches {fraction(kaiming)}, {wanted}."
    theirs = TABLE_1["bp-tied"].mean("evr")
    near = min(evr, key=lambda s: abs(evr[s] - theirs))
    return f"{said} The paper's {fraction(theirs)} is met most nearly by init_std {near:.3g} ({fraction(evr[near])})."


def best_match(distances: Mapping[str, Mapping[float, float]]) -> str:
    """Question (e): which init_std gives lines nearest to the paper's, for each setup by init_std."""
    said = []
    for setup, by_std in distances.items():
        if by_std:
            ranked = sorted(by_std, key=lambda s: by_std[s])
            others = ", ".join(f"{s:.3g} ({by_std[s]:.2f})" for s in ranked[1:3])
            said.append(
                f"{TITLES[setup]}: init_std {ranked[0]:.3g} (distance {by_std[ranked[0]]:.2f})"
                + (f", then {others}" if others else "")
            )
    if not said:
        return "Nothing was measured."
    firsts = [min(d, key=lambda s: d[s]) for d in distances.values() if d]
    agree = "one scale fits best for both" if len(set(firsts)) == 1 else "no one scale fits both best"
    return "; ".join(said) + (f". So {agree}." if len(firsts) > 1 else ".")


def like_the_papers(moment: Moment) -> str:
    """The moment of training that is most like the paper's line."""
    numbers = ", ".join(f"{name} {number(key, moment.metrics.get(key))}" for key, name in NAMES.items())
    distance = moment.distance
    said = (
        "the paper's line is met" if distance < 0.1 else "it is near" if distance < 0.3 else "it is still far from it"
    )
    return (
        f"of all logged training batches, step {moment.step:,} of `{moment.setup}` is most like the paper's line: "
        f"{numbers} (distance without the dictionary {distance:.2f}: {said})."
    )
