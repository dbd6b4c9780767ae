"""What the local explainer sees at each token of a window: the word so far, those before it, classes, endings, place.

Everything is a small whole number, 0 for "not applicable", so that a statement about a token is `(feature, number)` and
statements about many tokens are comparisons of arrays. Nothing behind the token is looked at: the language model could
not see it either.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int

from hsae.inspect.tokens import Pieces
from hsae.interpret import words

Features = dict[str, Int[np.ndarray, "_ _"]]
"""by name, [window, token]"""

BITS = 21
"""of a feature's number"""
FIRST, INSIDE = 1, 2
"""places of a word in its sentence"""
STARTS = (1, 4, 16)
TAILS = (2, 3)


class Lexicon:
    """Words met so far, by number. Grows as windows are read.

    Args:
        pieces: makes text of token ids.
    """

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self.words: list[str] = [""]
        self._number: dict[str, int] = {"": 0}
        self._by_tokens: dict[int, int] = {}
        self._facts = [(0, 0, 0, False, *(0 for _ in TAILS))]
        self.parts: list[str] = []
        self.tails: list[str] = [""]
        self._tail_number: dict[str, int] = {}
        self._joins = self._open = np.zeros(0, bool)
        self._read = np.zeros(0, bool)

    def number(self, word: str) -> int:
        """The number of a word."""
        if word not in self._number:
            if len(self.words) >> BITS:
                return 0  # Millions of words: those that come late are not seen.
            self._number[word] = len(self.words)
            self.words.append(word)
            first = next((c for c in word if c.isalpha()), "")
            facts = (words.word_class(word), words.kind(word), ord(first.lower()[0]) if first else 0)
            tails = (self._tail(word[-n:]) if len(word) > n and word[-n:].isalpha() else 0 for n in TAILS)
            self._facts.append((*facts, words.ends_sentence(word), *tails))
        return self._number[word]

    def _tail(self, text: str) -> int:
        if text not in self._tail_number:
            self._tail_number[text] = len(self.tails)
            self.tails.append(text)
        return self._tail_number[text]

    def _learn(self, tokens: Int[np.ndarray, "window token"]) -> None:
        """Take in token ids not seen before."""
        ids = np.unique(tokens[tokens >= 0])
        if not len(ids):
            return
        if len(self._read) <= ids[-1]:
            more = int(ids[-1]) + 1 - len(self._read)
            self.parts += [""] * more
            self._joins, self._open, self._read = (np.pad(a, (0, more)) for a in (self._joins, self._open, self._read))
        for token in ids[~self._read[ids]].tolist():
            text = self._pieces.one(token)
            self.parts[token] = text
            self._joins[token] = text[0].isalnum() or text[0] in "'’"
            # A lone space begins a word whose letters are still to come.
            self._open[token] = text[-1].isalnum() or text[-1] in "'’" or text == " "
            self._read[token] = True

    def read(self, tokens: Int[np.ndarray, "window token"]) -> Features:
        """The features of windows.

        Args:
            tokens: token ids, -1 outside of the sequence.
        """
        self._learn(tokens)
        tokens = tokens.astype(np.int64)
        inside = tokens >= 0
        known = np.where(inside, tokens, 0)
        begins = inside.copy()
        begins[:, 1:] &= ~(self._joins[known[:, 1:]] & self._open[known[:, :-1]] & inside[:, :-1])
        word = self._words(tokens, begins)
        classes, kinds, initials, ends, *tails = (np.array(column) for column in zip(*self._facts, strict=True))
        previous, second, place = self._behind(word, begins, ends)
        later = inside & ~begins
        values = {
            "word": word,
            "part": np.where(later, tokens + 1, 0),
            "kind": np.where(later, words.PART, kinds[word]),
            "class": classes[word],
            "initial": initials[word],
            **{f"tail{n}": column[word] for n, column in zip(TAILS, tails, strict=True)},
            "previous": previous,
            "second": second,
            "before": classes[previous],
            "place": place,
            **{f"first{n}": (~inside[:, :1] & (np.cumsum(inside, 1) <= n)).astype(np.int64) for n in STARTS},
        }
        return {name: np.where(inside, value, 0).astype(np.int64) for name, value in values.items()}

    def _words(
        self, tokens: Int[np.ndarray, "window token"], begins: Bool[np.ndarray, "window token"]
    ) -> Int[np.ndarray, "window token"]:
        """The number of the word up to and with each token."""
        key = np.zeros(tokens.shape, np.uint64)
        rolling = np.zeros(len(tokens), np.uint64)
        for column in range(tokens.shape[1]):
            own = (tokens[:, column] + 2).astype(np.uint64)
            rolling = np.where(begins[:, column], 0, rolling) * np.uint64(0x9E3779B97F4A7C15) + own
            key[:, column] = rolling ^ (rolling >> np.uint64(29))
        found, example, back = np.unique(key, return_index=True, return_inverse=True)
        numbers = np.zeros(len(found), np.int64)
        for i, (one, place) in enumerate(zip(found.tolist(), example.tolist(), strict=True)):
            if one not in self._by_tokens:
                window, column = divmod(place, tokens.shape[1])
                first = column
                while first > 0 and not begins[window, first]:
                    first -= 1
                text = "".join(self.parts[t] for t in tokens[window, first : column + 1].tolist() if t >= 0)
                self._by_tokens[one] = self.number(text.strip(" \t") or text)
            numbers[i] = self._by_tokens[one]
        return numbers[back].reshape(tokens.shape)

    def _behind(
        self,
        word: Int[np.ndarray, "window token"],
        begins: Bool[np.ndarray, "window token"],
        ends: Bool[np.ndarray, "word"],
    ) -> tuple[Int[np.ndarray, "window token"], ...]:
        """For each token the word before its own, the one before that, and its word's place in the sentence."""
        previous, second, place = np.zeros_like(word), np.zeros_like(word), np.zeros_like(word)
        first, last, at = (np.zeros(len(word), np.int64) for _ in range(3))
        quotes = np.array([f[1] == words.QUOTE for f in self._facts])
        for column in range(word.shape[1]):
            new = begins[:, column]
            if column:
                done = word[:, column - 1]
                last = np.where(new, first, last)
                first = np.where(new, done, first)
                # A quotation mark does not count as a word of the sentence.
                step = np.where(ends[done], FIRST, np.where((at == FIRST) & ~quotes[done], INSIDE, at))
                at = np.where(new, step, at)
            previous[:, column], second[:, column], place[:, column] = first, last, at
        return previous, second, place
