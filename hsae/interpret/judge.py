"""Explaining and scoring by a language model: one that answers chat messages, wherever it runs."""

from __future__ import annotations

import fcntl
import json
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from hsae.errors import UserError
from hsae.inspect.tokens import Pieces
from hsae.interpret import prompts, score
from hsae.interpret.examples import EXPLAIN, SCORE, Contexts, Half, Halves
from hsae.interpret.local import shuffled
from hsae.interpret.results import Explanation, Score, from_row, to_row
from hsae.interpret.score import Trial

SHOWN = 20
"""contexts to explain from: half of them the strongest, half drawn from all firings"""
TOGETHER = 5
"""questions in one request, as in delphi"""
CONTROLLED = 20
"""latents that are also judged by another's explanation"""
EXPLAINING, JUDGING = 300, 60
"""tokens of an answer at most"""


@runtime_checkable
class Model(Protocol):
    """Something that answers. `concurrency`: how many may ask at a time; `stop`: no more answers are wanted."""

    concurrency: int
    stop: Event

    def answer(self, messages: prompts.Messages, tokens: int) -> str:
        """The answer to chat messages, so many tokens at most."""
        ...


class Judge:
    """Explains and scores latents by a language model.

    Args:
        model: who is asked.
        halves: the contexts.
        tokenizer: makes text of their tokens.
        journal: a file of explanations that are done, one a line; it is read first, and written as they come.
    """

    def __init__(self, model: Model, halves: Halves, tokenizer: Any, journal: Path) -> None:
        self.model, self.halves, self.journal = model, halves, journal
        self._pieces = Pieces(tokenizer)

    def explain(self, latents: Sequence[int], advance: Callable[[int], None]) -> dict[int, Explanation]:
        """Explain and score latents that can be. `advance` hears of each.

        Raises:
            UserError: the model does not answer; what is done is in the journal.
            KeyboardInterrupt: on Ctrl-C, likewise.
        """
        self.journal.parent.mkdir(parents=True, exist_ok=True)
        with open(self.journal, "a", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{self.journal}: another interpret is writing it; wait for that one") from None
            found = {latent: one for latent, one in self._journal().items() if latent in set(latents)}
            advance(len(found))
            left = [latent for latent in latents if latent not in found]
            file.write("\n")  # Should the last line have been cut off.
            for one in self._each(self._latent, left):
                found[one.latent] = one
                file.write(json.dumps(to_row(one), ensure_ascii=False) + "\n")
                file.flush()
                advance(1)
        told = [latent for latent in sorted(found) if found[latent].text][:CONTROLLED]
        others = shuffled(told)
        by_other = {latent: found[other].text for latent, other in others.items() if not found[latent].shuffled}
        for latent, (detection, fuzzing) in self._each(lambda i: (i, self._judge(by_other[i], i)[:2]), list(by_other)):
            found[latent] = replace(found[latent], shuffled=detection, shuffled_fuzzing=fuzzing)
        return found

    def _journal(self) -> dict[int, Explanation]:
        try:
            lines = self.journal.read_text(encoding="utf-8").splitlines()
        except OSError:
            return {}
        done = {}
        for line in lines:
            try:
                one = from_row(json.loads(line))
            except (ValueError, TypeError, KeyError):  # The line that was being written.
                continue
            done[one.latent] = one
        return done

    def _each(self, work: Callable[[int], Any], latents: Sequence[int]) -> Iterator[Any]:
        """Results as they come. What fails, or Ctrl-C, ends the others before their next request."""
        if self.model.concurrency == 1:
            yield from map(work, latents)
            return
        with ThreadPoolExecutor(self.model.concurrency) as pool:
            try:
                for future in as_completed([pool.submit(work, latent) for latent in latents]):
                    yield future.result()
            except BaseException:
                self.model.stop.set()
                pool.shutdown(cancel_futures=True)
                raise

    def _ask(self, messages: prompts.Messages, tokens: int) -> str:
        if self.model.stop.is_set():
            raise CancelledError
        return self.model.answer(messages, tokens)

    def _latent(self, latent: int) -> Explanation:
        text = self._explain(self.halves.of(latent, EXPLAIN))
        if not text:
            return Explanation(latent, "", "the model gave no explanation")
        detection, fuzzing, quantiles = self._judge(text, latent)
        why = "" if detection else "the model's judgements could not be read"
        return Explanation(latent, text, why, detection=detection, fuzzing=fuzzing, quantiles=quantiles)

    def _explain(self, half: Half) -> str:
        strongest = half.top[np.arange(len(half.top)) < SHOWN // 2]
        drawn = half.drawn[np.arange(len(half.drawn)) < SHOWN - len(strongest)]
        contexts = Contexts(*(np.concatenate([getattr(p, n) for p in (strongest, drawn)]) for n in ("tokens", "code")))
        scale = max(float(contexts.strength.max(initial=0)), 1e-30)
        examples, activations = [], []
        for tokens, code, marks in zip(contexts.tokens, contexts.code, contexts.marked, strict=True):
            inside = tokens >= 0
            text = self._pieces(tokens[inside].tolist())
            examples.append(prompts.marked(text, marks[inside].tolist()))
            listed = zip(text, code[inside].tolist(), marks[inside].tolist(), strict=True)
            activations.append(
                [(piece, max(1, math.ceil(10 * value / scale))) for piece, value, mark in listed if mark]
            )
        return prompts.read_explanation(self._ask(prompts.explain(examples, activations), EXPLAINING))

    def _judge(self, text: str, latent: int) -> tuple[Score | None, Score | None, tuple[tuple[int, int], ...]]:
        """Detection and fuzzing by an explanation, and detection by quantile."""
        half = self.halves.of(latent, SCORE)
        # As many contexts that the latent is silent in as it is active in.
        few = np.flatnonzero(half.quiet)[: len(half.drawn)]
        half = Half(half.drawn, half.top, half.windows[few])
        detection, fuzzing = score.detection(half.drawn, half), score.fuzzing(half, latent)
        detected = self._answers(text, detection, latent)
        right = detected[: len(half.drawn)] == 1
        fuzzed = fuzzing.score(self._answers(text, fuzzing, latent))
        return detection.score(detected), fuzzed, score.by_quantile(half.drawn, right)

    def _answers(self, text: str, trial: Trial, latent: int) -> Int[np.ndarray, "question"]:
        """A model's answers, asked a few questions at a time in mixed order; -1 where it gave none."""
        order = np.random.default_rng(latent).permutation(len(trial.truth))
        answers = np.full(len(order), -1, np.int64)
        for first in range(0, len(order), TOGETHER):
            some = order[first : first + TOGETHER]
            examples = []
            for question in some:
                inside = trial.tokens[question] >= 0
                marks = np.zeros(inside.sum(), bool) if trial.marks is None else trial.marks[question][inside]
                examples.append(prompts.marked(self._pieces(trial.tokens[question][inside].tolist()), marks.tolist()))
            answer = self._ask(prompts.judge(text, examples, trial.marks is not None), JUDGING)
            answers[some] = prompts.read_judgement(answer, len(some))
        return answers
