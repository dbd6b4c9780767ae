"""Token ids to text, one piece for each token, so that the pieces in a row are the true text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_BROKEN = "\N{REPLACEMENT CHARACTER}"


class Pieces:
    """Cuts decoded text at token borders.

    A byte-level token may be a part of a character: the character goes to the token that completes it, those before it
    have an empty piece. SentencePiece decoders drop the first token's leading space: it is kept here, since a window of
    tokens mostly starts inside a text.

    Args:
        tokenizer: a `tokenizers.Tokenizer`, a transformers tokenizer, or None; then a piece is the id, as ⟨123⟩.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._anchor: list[int] = []
        if tokenizer is None:
            return
        self._transformers = hasattr(tokenizer, "convert_ids_to_tokens")
        # Decoders treat the start of a text in their own ways, so every window is decoded behind this token.
        found = tokenizer.encode("a", add_special_tokens=False)
        self._anchor = list(found if self._transformers else found.ids)[-1:]
        self._base = len(self._decode([]))

    def __call__(self, ids: Sequence[int]) -> tuple[str, ...]:
        """The pieces of a stretch of token ids."""
        if self._tokenizer is None:
            return tuple(f"⟨{i}⟩" for i in ids)
        pieces, done = [], self._base
        for count, token in enumerate(ids, start=1):
            text = self._decode(ids[:count])
            if text.endswith(_BROKEN) and count < len(ids):
                pieces.append("")
                continue
            piece = text[done:] if self._known(token) else f"{text[done:]}⟨{token}⟩"
            done = len(text)
            # Bytes that no character came of, at a window's start: they are no part of this token.
            broken = len(piece) - len(piece.lstrip(_BROKEN))
            if 0 < broken < len(piece) and pieces:
                pieces[-1], piece = piece[:broken], piece[broken:]
            pieces.append(piece)
        return tuple(pieces)

    def one(self, token: int) -> str:
        """The text of one token; its id, as ⟨123⟩, if it is no text by itself."""
        (piece,) = self([token])
        return f"⟨{token}⟩" if not piece or _BROKEN in piece else piece

    def _decode(self, ids: Sequence[int]) -> str:
        options = {"clean_up_tokenization_spaces": False} if self._transformers else {}
        known = [i for i in ids if self._known(i)]
        return self._tokenizer.decode([*self._anchor, *known], skip_special_tokens=False, **options)

    def _known(self, token: int) -> bool:
        name = self._tokenizer.convert_ids_to_tokens if self._transformers else self._tokenizer.id_to_token
        return name(token) is not None
