"""Token ids to text for hundreds of thousands of windows at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from hsae.inspect.tokens import Pieces

_BROKEN = "\N{REPLACEMENT CHARACTER}"

K = TypeVar("K")
V = TypeVar("V")


class Words(Pieces):
    """`Pieces`, fast.

    Most tokens are the same text wherever they stand: their text *alone*. Only those that are a part of a character
    depend on their neighbours, and only on those in the same unbroken run of such tokens. So a window is put together
    from tokens and runs that were decoded once, and then compared with its own text, decoded in one go with all other
    windows'. Where they differ, the tokeniser is not of this kind, and the window is decoded token by token.

    Attributes:
        alone: by token id, its text wherever it stands; None where that depends on its neighbours or is unknown.
    """

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer)
        self.alone: dict[int, str | None] = _Memory(self._text_alone)
        self._runs: dict[tuple[int, ...], tuple[str, ...]] = _Memory(self)

    def many(self, windows: Sequence[Sequence[int]]) -> list[tuple[str, ...] | None]:
        """For each window the pieces of its tokens; None where each of them is the token's text alone."""
        if self._tokenizer is None:
            return [None] * len(windows)
        found = []
        for window, text in zip(windows, self._texts(windows), strict=True):
            alone = list(map(self.alone.__getitem__, window))
            simple = list(filter(None, alone))
            pieces = simple if len(simple) == len(alone) else self._put_together(window, alone)
            if "".join(pieces) != text:
                found.append(self(window))
            else:
                found.append(None if pieces is simple else tuple(pieces))
        return found

    def _text_alone(self, token: int) -> str | None:
        (text,) = self([token])
        return text if self._tokenizer is None or (self._known(token) and text and _BROKEN not in text) else None

    def _put_together(self, window: Sequence[int], alone: Sequence[str | None]) -> list[str]:
        pieces, run = [], []
        for token, text in zip(window, alone, strict=True):
            if text is None:
                run.append(token)
                continue
            if run:
                pieces += self._runs[tuple(run)]
                run = []
            pieces.append(text)
        return pieces + list(self._runs[tuple(run)]) if run else pieces

    def _texts(self, windows: Sequence[Sequence[int]]) -> list[str]:
        behind = [[*self._anchor, *self._readable(window)] for window in windows]
        if self._transformers:
            texts = self._tokenizer.batch_decode(behind, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        else:
            texts = self._tokenizer.decode_batch(behind, skip_special_tokens=False)
        return [text[self._base :] for text in texts]

    def _readable(self, window: Sequence[int]) -> Sequence[int]:
        """A window without ids that are no tokens of this tokeniser: some decoders fail at them."""
        if all(map(self.alone.__getitem__, window)):
            return window
        return [token for token in window if self.alone[token] is not None or self._known(token)]


class _Memory(dict[K, V]):
    """A table that fills itself."""

    def __init__(self, function: Callable[[K], V]) -> None:
        super().__init__()
        self._function = function

    def __missing__(self, key: K) -> V:
        value = self[key] = self._function(key)
        return value
