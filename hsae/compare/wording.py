"""Words that the terminal and the page share."""

from __future__ import annotations

from collections.abc import Sequence

from hsae.compare.pair import FEW, Comparison
from hsae.compare.report import Report

SAME = 0.1
"""share of shared pairs of one number that is worth a warning; by chance it is one in the number of latents"""


def caption(report: Report) -> str:
    """Where the metrics come from, and what the headings mean."""
    if report.measured:
        where = (
            f"Measured on the last {report.tokens:,} tokens of store {report.store} ({report.hook}), in its own units; "
            "dict: latents that fire on them, dead: the others"
        )
    else:
        where = (
            f"From the runs: over {report.held_out:,} held-out tokens of store {report.store} ({report.hook}), at the "
            "training's scale; dict: latents that fire on any; dead: on none of the last training tokens"
        )
    losses = any(entry.figures.recovered is not None for entry in report.entries)
    more = "; CE: loss recovered, of the mean ablation" if losses else ""
    return f"{where}; tok/s: of training{more}. *: on the Pareto front."


def pairs_caption(report: Report) -> str:
    """What the table of pairs says."""
    approximate = [m for pair in report.pairs for m in (pair.cosine, pair.correlation) if not m.exact]
    return (
        f"On the last {report.tokens:,} tokens of store {report.store}. fires: latents of either that fire on them, "
        "the only ones that are matched; cosine: of decoder rows, mean over matched pairs; corr.: of activations, "
        f"among latents that fire {FEW} times or more; chance: random dictionaries of that size, mean and covariance, "
        f"and shuffled tokens; shared: pairs above {report.threshold:g}, as a share of either's latents; same: "
        "latents that both matchings give the same partner."
        + (" Large dictionaries were matched among nearest candidates." if approximate else "")
    )


def same_rows(pairs: Sequence[Comparison], keys: dict[str, str]) -> str:
    """A warning where latents may be alike because they were so before anything was learnt; empty where not.

    Args:
        pairs: the comparisons.
        keys: the letter of each SAE, by its name.
    """
    parts = []
    for measure in ("cosine", "correlation"):
        every = [(f"{keys[pair.a]}–{keys[pair.b]}", getattr(pair, measure)) for pair in pairs]
        many = [(name, m) for name, m in every if m.same_number and m.same_number >= SAME * m.found.shared]
        if counts := ", ".join(f"{name} {m.same_number:,} of {m.found.shared:,}" for name, m in many):
            parts.append(f"by {measure} {counts}")
    if not parts:
        return ""
    return (
        f"many shared latents have the same number in both SAEs: {'; '.join(parts)}. SAEs of one seed may start from "
        "the same rows, so these may be alike from the start, and not by what they learnt."
    )
