"""What a language model is asked, in delphi's manner: explain marked tokens; say which texts an explanation fits."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

from hsae.errors import visible
from hsae.interpret.rules import LENGTH

Messages = list[dict[str, str]]

LEFT, RIGHT = "<<", ">>"

_EXPLAIN = """\
You study what one unit of a language model responds to. You are given excerpts of text. The tokens at which the unit is
active stand between << and >>, and after each excerpt they are listed with how active it was, from 1 to 10.
Say in one short phrase what the marked tokens, or what comes before them, have in common: fewer than 15 words, as
specific as the excerpts allow. Give one pattern, not a list of guesses, and do not speak of the markers.
The last line of your answer must be the phrase, after [EXPLANATION]:"""

_EXPLAINED = (
    "Example 1: a river is wide but the ocean is wid<<er>> .\nActivations: (er, 9)\n"
    "Example 2: every year you get tall<<er>> , she\nActivations: (er, 4)\n"
    "Example 3: the hole was small<<er>> but deep<<er>> than\nActivations: (er, 10), (er, 8)",
    "[EXPLANATION]: the ending -er of comparative adjectives of size",
)

_JUDGE = """\
You are given a description of what one unit of a language model responds to, and some excerpts of text.
{task}
Answer with a Python list of as many numbers as there are excerpts, in their order, and with nothing else."""

_DETECT = """\
For each excerpt say whether the unit is active anywhere in it: 1 if the description fits some part of the excerpt, 0 if
it fits none."""

_FUZZ = """\
In each excerpt some tokens are marked, between << and >>. They may be the ones at which the unit is active, or others.
For each excerpt say 1 if the description fits the marked tokens, 0 if it does not. All, some or none may fit."""

_SHOWN = {
    False: (
        "Description: the word ‘time’ after ‘it is’\n\n"
        "Example 1:  she said that it is time to go home\n"
        "Example 2:  they had a good time at the park\n"
        "Example 3:  and he knew it is time for dinner",
        "[1, 0, 1]",
    ),
    True: (
        "Description: the word ‘time’ after ‘it is’\n\n"
        "Example 1:  she said that it is<< time>> to go home\n"
        "Example 2:  they had a<< good>> time at the park\n"
        "Example 3:  and he<< knew>> it is time for dinner",
        "[1, 0, 0]",
    ),
}


def marked(text: Sequence[str], marks: Iterable[bool]) -> str:
    """An excerpt on one line; runs of marked tokens stand between << and >>."""
    written, inside = [], False
    for piece, mark in zip(text, marks, strict=True):
        if mark != inside:
            written.append(LEFT if mark else RIGHT)
            inside = mark
        written.append(piece)
    return visible("".join(written) + (RIGHT if inside else ""))


def explain(examples: Sequence[str], activations: Sequence[Sequence[tuple[str, int]]]) -> Messages:
    """Ask for an explanation.

    Args:
        examples: excerpts with marks.
        activations: of each, the marked tokens with their strength from 1 to 10.
    """
    lines = []
    for number, (example, strengths) in enumerate(zip(examples, activations, strict=True), start=1):
        listed = ", ".join(f"({visible(token).strip()}, {strength})" for token, strength in strengths)
        lines.append(f"Example {number}: {example}\nActivations: {listed}")
    return [
        {"role": "system", "content": _EXPLAIN},
        {"role": "user", "content": _EXPLAINED[0]},
        {"role": "assistant", "content": _EXPLAINED[1]},
        {"role": "user", "content": "\n".join(lines)},
    ]


def judge(explanation: str, examples: Sequence[str], fuzzing: bool) -> Messages:
    """Ask which excerpts an explanation fits; with marks it is about the marked tokens."""
    lines = [f"Example {number}: {example}" for number, example in enumerate(examples, start=1)]
    question, answer = _SHOWN[fuzzing]
    return [
        {"role": "system", "content": _JUDGE.format(task=_FUZZ if fuzzing else _DETECT)},
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "\n".join([f"Description: {explanation}", "", *lines])},
    ]


def read_explanation(answer: str) -> str:
    """The phrase of an answer, on one line and not too long; empty where it has none."""
    _, found, phrase = answer.rpartition("[EXPLANATION]")
    if not found:
        return ""
    line = visible(next((line.strip() for line in phrase.lstrip(": ").splitlines() if line.strip()), ""))
    return line if len(line) <= LENGTH else line[: LENGTH - 1].rstrip() + "…"


def read_judgement(answer: str, count: int) -> list[int]:
    """The numbers of an answer, 1 or 0; all -1 where it is not a list of so many."""
    for found in re.findall(r"\[[^\[\]]*\]", answer):
        try:
            numbers = json.loads(found)
        except ValueError:
            continue
        if len(numbers) == count and all(number in (0, 1) for number in numbers):
            return [int(number) for number in numbers]
    return [-1] * count
