"""A rule: a statement about tokens that a reader understands and a machine can apply. Its text is all that it does."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import reduce

import numpy as np
from jaxtyping import Bool, Int

from hsae.errors import visible
from hsae.interpret.features import BITS, FIRST, Features, Lexicon
from hsae.interpret.words import CLASS_NAMES, KINDS

LENGTH = 100
"""characters of a rule's text at most"""
NOTHING = "no clear pattern"

Shape = tuple[str, ...]
Literal = tuple[str, int]

HEADS = ("word", "part", "kind", "class", "initial", "tail2", "tail3")
"""features of the token itself; the others are of what stands before it"""
LEADS = {"previous": "after ", "second": "two words after ", "before": "after ", "place": ""}
"""what leads over to the others"""


@dataclass(frozen=True)
class Clause:
    """Literals that must all hold of a token; one of its own at most, and first."""

    literals: tuple[Literal, ...]

    @property
    def shape(self) -> Shape:
        """The features that it is about."""
        return tuple(name for name, _ in self.literals)

    def holds(self, features: Features) -> Bool[np.ndarray, "window token"]:
        """At which tokens it holds."""
        return reduce(np.logical_and, (features[name] == number for name, number in self.literals))


@dataclass(frozen=True)
class Rule:
    """Clauses, of which one must hold. A rule without clauses never holds."""

    clauses: tuple[Clause, ...] = ()

    def holds(self, features: Features) -> Bool[np.ndarray, "window token"]:
        """At which tokens it says that the latent fires."""
        never = np.zeros(features["word"].shape, bool)
        return reduce(np.logical_or, (clause.holds(features) for clause in self.clauses), never)


def keys(features: Features, shape: Shape) -> Int[np.ndarray, "window token"]:
    """One number for the features of a shape together; 0 where one of them does not apply."""
    values = [features[name] for name in shape]
    if len(values) == 1:
        return values[0]
    mixed = reduce(lambda a, b: (a << BITS) | b, values)
    return np.where(reduce(np.logical_and, (value > 0 for value in values)), mixed, 0)


def clause(shape: Shape, key: int) -> Clause:
    """The clause whose key it is."""
    mask = (1 << BITS) - 1
    numbers = [(key >> (BITS * i)) & mask for i in reversed(range(len(shape)))]
    return Clause(tuple(zip(shape, numbers, strict=True)))


def words_of(rule: Rule, lexicon: Lexicon, open_words: Collection[int] = ()) -> str:
    """The rule in words.

    Args:
        rule: what to put into words.
        lexicon: the words' numbers.
        open_words: numbers of words that mostly go on behind the token: they are written with a hyphen.
    """
    shapes: dict[Shape, list[Clause]] = {}
    for one in rule.clauses:
        shapes.setdefault(one.shape, []).append(one)
    groups: dict[tuple[Literal, ...], list[Clause]] = {}
    for same in shapes.values():
        # Clauses of a shape differ in the head or in what stands before it: what they share is said once.
        by_rest = len({c.literals[1:] for c in same}) <= len({c.literals[0] for c in same})
        for one in same:
            shared = one.literals[1:] if by_rest else one.literals[:1]
            groups.setdefault(tuple((name, -1) for name in one.shape) + shared, []).append(one)
    return "; ".join(_said(same, lexicon, open_words) for same in groups.values()) or NOTHING


def _said(same: list[Clause], lexicon: Lexicon, open_words: Collection[int]) -> str:
    """Clauses of one shape that share what stands first, or what stands behind that."""
    columns = [[*dict.fromkeys(column)] for column in zip(*(c.literals for c in same), strict=True)]
    name = columns[0][0][0]
    parts = []
    if name in HEADS:
        named = " / ".join(_head(literal, lexicon, open_words) for literal in columns.pop(0))
        parts.append(f"a word that begins with {named}" if name == "initial" else named)
    elif not name.startswith("first"):
        parts.append("a word" if name == "place" else "the word")
    for column in columns:
        lead = LEADS.get(column[0][0], "among ")
        parts.append(f"{lead}{' / '.join(_behind(literal, lexicon) for literal in column)}")
    return " ".join(parts)


def _head(literal: Literal, lexicon: Lexicon, open_words: Collection[int]) -> str:
    name, number = literal
    if name == "word":
        return _quoted(number, lexicon, "-" if number in open_words else "")
    if name == "part":
        return f"‘-{visible(lexicon.parts[number - 1])}’"
    if name == "kind":
        return KINDS[number]
    if name == "class":
        return CLASS_NAMES[number]
    return chr(number) if name == "initial" else f"‘…{lexicon.tails[number]}’"


def _behind(literal: Literal, lexicon: Lexicon) -> str:
    name, number = literal
    if name.startswith("first"):
        return f"the first {name.removeprefix('first')} tokens of a sequence"
    if name == "place":
        return "at the start of a sentence" if number == FIRST else "inside a sentence"
    return CLASS_NAMES[number] if name == "before" else _quoted(number, lexicon)


def _quoted(number: int, lexicon: Lexicon, more: str = "") -> str:
    word = lexicon.words[number]
    if not word.strip():
        return "a line break" if "\n" in word else "a lone space"
    return f"‘{visible(word)}{more}’"
