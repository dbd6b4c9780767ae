"""How well an explanation holds on contexts that it was not made from: delphi's detection and fuzzing.

Detection: is the latent active anywhere in this context? Fuzzing: these tokens of the context are marked; are they the
ones that the latent is active at? All explainers are asked the same: `Trial`s are the questions, with the truth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Int

from hsae.evidence.latent import QUANTILES
from hsae.interpret.examples import Contexts, Half
from hsae.interpret.results import Score
from hsae.intervals import wilson


@dataclass(frozen=True)
class Trial:
    """Questions of one task about one latent.

    Attributes:
        tokens: of each context; -1 outside of the sequence.
        marks: the marked tokens; None for detection.
        truth: the right answers.
    """

    tokens: Int[np.ndarray, "question token"]
    marks: Bool[np.ndarray, "question token"] | None
    truth: Bool[np.ndarray, "question"]

    def score(self, answers: Int[np.ndarray, "question"]) -> Score | None:
        """Balanced accuracy of answers: 1 yes, 0 no, -1 none (which counts for nothing); None where a side is empty."""
        yes, no = self.truth & (answers >= 0), ~self.truth & (answers >= 0)
        return balanced(int((answers[yes] == 1).sum()), int(yes.sum()), int((answers[no] == 0).sum()), int(no.sum()))


def detection(contexts: Contexts, half: Half) -> Trial:
    """Contexts that the latent is active in, and the quiet windows."""
    tokens = np.concatenate([contexts.tokens, half.windows.tokens[half.quiet]])
    return Trial(tokens, None, np.arange(len(tokens)) < len(contexts))


def fuzzing(half: Half, latent: int) -> Trial:
    """Contexts with its own tokens marked, and quiet windows with as many tokens marked at random."""
    quiet = half.windows[half.quiet]
    return _marked(half.drawn, quiet.tokens, quiet.tokens >= 0, latent)


def within(half: Half, latent: int) -> Trial:
    """Contexts with its own tokens marked, and the same with as many of those marked at random that it is silent at."""
    some = half.drawn.silent.any(1)
    return _marked(half.drawn, half.drawn.tokens[some], half.drawn.silent[some], latent)


def _marked(
    contexts: Contexts, others: Int[np.ndarray, "other token"], free: Bool[np.ndarray, "other token"], latent: int
) -> Trial:
    # As many wrong marks as the latent is active at, on average, rounded up: delphi's number.
    count = math.ceil((contexts.code > 0).sum(1).mean())
    drawn = np.where(free, np.random.default_rng(latent).random(free.shape), 2.0)
    wrong = free & (drawn.argsort(1).argsort(1) < count)
    tokens = np.concatenate([contexts.tokens, others])
    return Trial(tokens, np.concatenate([contexts.marked, wrong]), np.arange(len(tokens)) < len(contexts))


def by_quantile(contexts: Contexts, right: Bool[np.ndarray, "context"]) -> tuple[tuple[int, int], ...]:
    """(found, active) of detection by fifths of the contexts' strongest activations, the strongest first."""
    order = np.argsort(-contexts.strength, kind="stable")
    cuts = [len(order) * i // QUANTILES for i in range(QUANTILES + 1)]
    return tuple((int(right[order[a:b]].sum()), b - a) for a, b in pairwise(cuts))


def balanced(found: int, active: int, rejected: int, silent: int) -> Score | None:
    """Balanced accuracy with Newcombe's interval for a mean of two independent proportions; None without both."""
    if not active or not silent:
        return None
    (a, a_low, a_high), (b, b_low, b_high) = wilson(found, active), wilson(rejected, silent)
    value = (a + b) / 2
    low = value - math.hypot(a - a_low, b - b_low) / 2
    high = value + math.hypot(a_high - a, b_high - b) / 2
    return Score(value, max(low, 0.0), min(high, 1.0), found, active, rejected, silent)
