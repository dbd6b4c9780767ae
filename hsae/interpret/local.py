"""Explaining and scoring many latents on this machine: rules by `explain`, asked about as `score` says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from hsae.inspect.tokens import Pieces
from hsae.interpret import score
from hsae.interpret.candidates import Background, Lesson
from hsae.interpret.examples import DENSE, EXPLAIN, FEW, SCORE, Half, Halves
from hsae.interpret.explain import Finder
from hsae.interpret.features import Features, Lexicon
from hsae.interpret.results import Explanation, Score
from hsae.interpret.rules import Rule
from hsae.interpret.score import Trial

CHUNK = 64
"""latents whose contexts are read at a time"""


@dataclass(frozen=True)
class _Seen:
    """A latent's contexts to score on, as features."""

    half: Half
    drawn: Features
    top: Features


class Local:
    """The local explainer over one index.

    Args:
        halves: the contexts.
        tokenizer: makes text of their tokens.
    """

    def __init__(self, halves: Halves, tokenizer: Any) -> None:
        self.halves = halves
        self.lexicon = Lexicon(Pieces(tokenizer))
        self.background = Background(self.lexicon.read(halves.windows(EXPLAIN)))
        self.windows = self.lexicon.read(halves.windows(SCORE))

    def explain(self, latents: Sequence[int], advance: Callable[[int], None]) -> dict[int, Explanation]:
        """Explain latents that fire, and score those that can be. `advance` hears of each."""
        found: dict[int, Explanation] = {}
        rules: dict[int, Rule] = {}
        for some in _chunks(latents):
            explaining, scoring = self._see(some, EXPLAIN), self._see(some, SCORE)
            for latent in some:
                seen, why = explaining[latent], self.halves.reason(latent)
                found[latent] = Explanation(latent, "", why)
                if len(seen.half.drawn) >= FEW:
                    both = {name: np.concatenate([seen.drawn[name], seen.top[name]]) for name in seen.drawn}
                    finder = Finder(Lesson(seen.half, both, self.background), self.lexicon)
                    rules[latent] = rule = finder.rule()
                    scores = self._scores(latent, rule, finder.token(), scoring[latent], why)
                    found[latent] = replace(found[latent], text=finder.text(rule), **scores)
                advance(1)
        others = shuffled([latent for latent in latents if found[latent].detection])
        for some in _chunks(list(others)):
            for latent, seen in self._see(some, SCORE).items():
                detection, fuzzing = self._control(latent, rules[others[latent]], seen)
                found[latent] = replace(found[latent], shuffled=detection, shuffled_fuzzing=fuzzing)
        return found

    def _see(self, latents: Sequence[int], half: int) -> dict[int, _Seen]:
        halves = [self.halves.of(latent, half) for latent in latents]
        parts = [part for one in halves for part in (one.drawn, one.top)]
        features = self.lexicon.read(np.concatenate([part.tokens for part in parts]))
        ends = np.cumsum([len(part) for part in parts])[:-1]
        split = {name: np.split(values, ends) for name, values in features.items()}
        pieces = [{name: values[i] for name, values in split.items()} for i in range(len(parts))]
        return {
            latent: _Seen(one, pieces[2 * i], pieces[2 * i + 1])
            for i, (latent, one) in enumerate(zip(latents, halves, strict=True))
        }

    def _scores(self, latent: int, rule: Rule, token: Rule, seen: _Seen, why: str) -> dict[str, Any]:
        """The scores of an explanation. Of a latent that is never silent for long there is only one."""
        if why not in ("", DENSE):
            return {}
        drawn, within = rule.holds(seen.drawn), score.within(seen.half, latent)
        own = np.concatenate([drawn, drawn[seen.half.drawn.silent.any(1)]])
        found: dict[str, Any] = {"within": within.score(answers(within, own))}
        if why:
            return found
        detection, fuzzing = score.detection(seen.half.drawn, seen.half), score.fuzzing(seen.half, latent)
        top, quiet = score.detection(seen.half.top, seen.half), self._quiet(rule, seen)
        everywhere = np.concatenate([drawn, quiet])
        right = answers(detection, everywhere)
        by_token = np.concatenate([token.holds(seen.drawn), self._quiet(token, seen)])
        return found | {
            "detection": detection.score(right),
            "fuzzing": fuzzing.score(answers(fuzzing, everywhere)),
            "top": top.score(answers(top, np.concatenate([rule.holds(seen.top), quiet]))),
            "quantiles": score.by_quantile(seen.half.drawn, right[: len(drawn)] == 1),
            "token": detection.score(answers(detection, by_token)),
            "token_fuzzing": fuzzing.score(answers(fuzzing, by_token)),
        }

    def _control(self, latent: int, rule: Rule, seen: _Seen) -> tuple[Score | None, Score | None]:
        """Detection and fuzzing of a latent by another's rule."""
        holds = np.concatenate([rule.holds(seen.drawn), self._quiet(rule, seen)])
        trials = score.detection(seen.half.drawn, seen.half), score.fuzzing(seen.half, latent)
        detection, fuzzing = (trial.score(answers(trial, holds)) for trial in trials)
        return detection, fuzzing

    def _quiet(self, rule: Rule, seen: _Seen) -> Bool[np.ndarray, "window token"]:
        return rule.holds(self.windows)[seen.half.quiet]


def answers(trial: Trial, holds: Bool[np.ndarray, "question token"]) -> Int[np.ndarray, "question"]:
    """A rule's answers, from where it holds: active if it holds anywhere; rightly marked if at half of the marks."""
    if trial.marks is None:
        return np.asarray(holds.any(1), np.int64)
    return np.asarray(2 * (holds & trial.marks).sum(1) >= trial.marks.sum(1), np.int64)


def shuffled(latents: Sequence[int]) -> dict[int, int]:
    """For each latent another one, at random and the same every time; nothing where there is no other."""
    if len(latents) < 2:
        return {}
    order = np.random.default_rng(0).permutation(np.array(latents, np.int64))
    return dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))


def _chunks(latents: Sequence[int]) -> Iterator[Sequence[int]]:
    for first in range(0, len(latents), CHUNK):
        yield latents[first : first + CHUNK]
