"""The local explainer: the short rule that best tells a latent's tokens from others, on the half to explain from.

Statements are put together greedily, one at a time, by the two scores that the rule will be judged by (as they are on
this half), less a price for what has to be said.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from hsae.interpret.candidates import Candidates, Lesson, candidates
from hsae.interpret.features import Lexicon
from hsae.interpret.rules import LENGTH, Clause, Rule, words_of

NEW, MORE = 0.03, 0.015
"""price of a literal of a new shape, and of one more clause of a shape that is there"""
CLAUSES = 8
"""clauses at most"""
FAINT = 0.10
"""a rule whose gain over chance is below that on its own half is none"""


class Finder:
    """Finds the rule of one latent.

    Args:
        lesson: what there is to explain it from; one context at least.
        lexicon: that read it.
    """

    def __init__(self, lesson: Lesson, lexicon: Lexicon) -> None:
        self.lesson, self.lexicon = lesson, lexicon

    def rule(self) -> Rule:
        """The rule; one without clauses where nothing tells the latent's tokens from others."""
        return self._choose(candidates(self.lesson))

    def token(self) -> Rule:
        """The baseline: the token that is marked most."""
        part = self.lesson.features["part"][self.lesson.marked]
        whole = np.where(part > 0, 0, self.lesson.features["word"][self.lesson.marked])
        best = []
        for name, number in (("word", whole), ("part", part)):
            total = np.bincount(number, weights=self.lesson.share * (number > 0))
            best.append((total.max(), name, int(total.argmax())))
        return Rule((Clause((max(best)[1:],)),))

    def text(self, rule: Rule) -> str:
        """A rule in words."""
        return words_of(rule, self.lexicon, self._unfinished)

    @cached_property
    def _unfinished(self) -> set[int]:
        """Words so far that mostly go on behind the marked token."""
        word = self.lesson.features["word"][self.lesson.marked]
        goes_on = np.pad(self.lesson.features["part"][:, 1:] > 0, ((0, 0), (0, 1)))[self.lesson.marked]
        numbers, back = np.unique(word, return_inverse=True)
        return set(numbers[np.bincount(back, weights=goes_on) > np.bincount(back) / 2].tolist())

    def _choose(self, those: Candidates) -> Rule:
        window, share = self.lesson.window, self.lesson.share
        begin = np.flatnonzero(np.diff(window, prepend=-1))
        chosen: list[Clause] = []
        found, alarms = np.zeros(len(window), bool), np.zeros(those.alarms.shape[1], bool)
        noise = price = value = 0.0
        left = np.ones(len(those.clauses), bool)
        while len(chosen) < CLAUSES and left.any():
            union = those.found | found
            score = union @ share - (noise + those.noise)
            if self.lesson.detects:
                detection = np.logical_or.reduceat(union, begin, axis=1).mean(1) - (those.alarms | alarms).mean(1)
                score = (score + detection) / 2
            prices = price + np.array([_price(one, chosen) for one in those.clauses])
            gain = np.where(left, score - prices, -np.inf)
            best = int(gain.argmax())
            if gain[best] <= value:
                break
            left[best] = False
            if len(self.text(Rule((*chosen, those.clauses[best])))) > LENGTH:
                continue
            chosen.append(those.clauses[best])
            found, alarms = union[best], those.alarms[best] | alarms
            noise, price, value = noise + those.noise[best], prices[best], gain[best]
        return Rule(tuple(chosen)) if value >= FAINT else Rule()


def _price(one: Clause, chosen: list[Clause]) -> float:
    return MORE if any(one.shape == other.shape for other in chosen) else NEW * len(one.literals)
