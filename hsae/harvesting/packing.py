"""Documents -> rows of token ids of one length, with a cursor from which the very same rows go on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hsae.errors import UserError
from hsae.harvesting.text import Document, Source

Separator = Literal["auto", "eos", "bos", "none"]

# Documents are tokenised together until they hold this many characters.
BATCH_CHARACTERS = 1 << 17
BATCH_DOCUMENTS = 1024


@dataclass(frozen=True)
class Cursor:
    """A place in the text between two rows, and what came before it.

    Attributes:
        document: number of the document that the next row starts in (every document of the source counts).
        used: tokens of it that earlier rows hold, its separator counted.
        documents: documents that earlier rows hold some of.
        duplicates: documents dropped as exact duplicates.
        truncated: documents cut off at the context length ("documents" packing only).
    """

    document: int = 0
    used: int = 0
    documents: int = 0
    duplicates: int = 0
    truncated: int = 0


@dataclass(frozen=True)
class Row:
    """Token ids of one context, how many of them are no padding, and the place in the text behind them."""

    tokens: NDArray[np.int64]
    length: int
    cursor: Cursor


@dataclass(frozen=True)
class Piece:
    """One tokenised document with its separator, and how many duplicates were dropped before it."""

    document: int
    tokens: NDArray[Any]
    duplicates: int


@dataclass(frozen=True)
class Packing:
    """How documents become rows.

    Attributes:
        context: tokens in a row.
        pack: "packed" fills every row, running on from document to document; "documents" gives each document one row.
        separator: what stands between packed documents: "eos" after each, "bos" before each, "none", or "auto": eos
            between documents of text, nothing between those that are token ids already.
        prepend_bos: bos opens every row (not doubled where one stands there anyway).
        dedupe: drop documents that equal an earlier one. 16 bytes and some overhead are remembered for each document.
        eos, bos: their token ids, None where the tokeniser has none.
        pad: what fills short rows.
        vocabulary: token ids must be below it.
    """

    context: int
    pack: Literal["packed", "documents"] = "packed"
    separator: Separator = "auto"
    prepend_bos: bool = False
    dedupe: bool = False
    eos: int | None = None
    bos: int | None = None
    pad: int = 0
    vocabulary: int = 1 << 31

    def __post_init__(self) -> None:
        if self.bos is None and (self.prepend_bos or self.separator == "bos"):
            raise UserError("the tokeniser has no bos token; use --separator eos or none, and no --prepend-bos")
        if self.eos is None and self.pack == "packed" and self.separator in ("auto", "eos"):
            raise UserError("the tokeniser has no eos token; use --separator bos or none")

    def rows(self, source: Source, tokenizer: Any, cursor: Cursor | None = None) -> Rows:
        """Rows from a cursor on (None: from the beginning): the same rows that an unbroken reading gives from there.

        Args:
            source: the documents.
            tokenizer: a transformers tokeniser; it adds no special tokens here.
            cursor: where an earlier reading stood.
        """
        return Rows(self, source, tokenizer, cursor or Cursor())


class Rows(Iterator[Row]):
    """The rows of a text, one by one.

    Attributes:
        duplicates: documents dropped so far; all of them once the rows have ended.

    Raises:
        UserError: (while iterating) a document cannot be read, or a token id does not fit the vocabulary.
    """

    def __init__(self, packing: Packing, source: Source, tokenizer: Any, cursor: Cursor) -> None:
        self.packing, self.source, self.tokenizer = packing, source, tokenizer
        self.duplicates = 0
        self._start, self._ahead = cursor.document, list[Cursor]()
        self._rows = (self._packed if packing.pack == "packed" else self._one_each)(cursor)

    def skip_to(self, cursor: Cursor) -> None:
        """Leave out the rows before a place further on: that of an earlier reading. They are not tokenised."""
        self._start, self._ahead = cursor.document, [cursor]

    def __next__(self) -> Row:
        row = next(self._rows)
        for token in (int(row.tokens.min()), int(row.tokens.max())):
            if not 0 <= token < self.packing.vocabulary:
                raise UserError(
                    f"token id {token} in document {row.cursor.document} or just before it: the model's vocabulary is "
                    f"0 to {self.packing.vocabulary - 1}; were the ids made by another tokeniser?"
                )
        return row

    def _packed(self, cursor: Cursor) -> Iterator[Row]:
        """Rows filled to the end. A last one that stays incomplete is dropped."""
        context, bos = self.packing.context, self.packing.bos if self.packing.prepend_bos else None
        row, filled = np.empty(context, np.int64), 0
        for piece in self._pieces():
            if piece.document < cursor.document:  # tokenised before it was to be left out
                continue
            if piece.document > cursor.document:
                cursor = replace(cursor, document=piece.document, used=0)
            cursor = replace(cursor, duplicates=piece.duplicates, documents=cursor.documents + (cursor.used == 0))
            while cursor.used < len(piece.tokens):
                if filled == 0 and bos is not None and piece.tokens[cursor.used] != bos:
                    row[0], filled = bos, 1
                taken = piece.tokens[cursor.used : cursor.used + context - filled]
                row[filled : filled + len(taken)] = taken
                filled += len(taken)
                cursor = replace(cursor, used=cursor.used + len(taken))
                if filled == context:
                    yield Row(row.copy(), context, _after(cursor) if cursor.used == len(piece.tokens) else cursor)
                    filled = 0
                    if self._ahead:
                        cursor = self._ahead.pop()
                        if cursor.document > piece.document:
                            break

    def _one_each(self, cursor: Cursor) -> Iterator[Row]:
        """One document a row, padded on the right, cut off at the context length."""
        context, bos = self.packing.context, self.packing.bos if self.packing.prepend_bos else None
        for piece in self._pieces():
            if piece.document < cursor.document:
                continue
            row, start = np.full(context, self.packing.pad, np.int64), 0
            if bos is not None and piece.tokens[0] != bos:
                row[0], start = bos, 1
            taken = piece.tokens[: context - start]
            row[start : start + len(taken)] = taken
            cut = len(taken) < len(piece.tokens)
            cursor = Cursor(piece.document + 1, 0, cursor.documents + 1, piece.duplicates, cursor.truncated + cut)
            yield Row(row, start + len(taken), cursor)
            if self._ahead:
                cursor = self._ahead.pop()

    def _pieces(self) -> Iterator[Piece]:
        """Tokenised documents without empty ones and dropped duplicates; those before the start are left out."""
        dedupe, seen = self.packing.dedupe, set[bytes]()
        batch: list[tuple[int, int, Document]] = []
        characters = 0
        # A duplicate can only be told by all documents before it; those are read again, but not tokenised.
        first = 0 if dedupe else self._start
        for number, document in enumerate(self.source.documents(first), start=first):
            if len(document) == 0:
                continue
            if dedupe:
                raw = document.encode() if isinstance(document, str) else document.tobytes()
                key = hashlib.blake2b(raw, digest_size=16).digest()
                if key in seen:
                    self.duplicates += 1
                    continue
                seen.add(key)
            if number < self._start:
                continue
            batch.append((number, self.duplicates, document))
            characters += len(document) if isinstance(document, str) else 0
            if characters >= BATCH_CHARACTERS or len(batch) == BATCH_DOCUMENTS:
                yield from self._tokenised(batch)
                batch, characters = [], 0
        yield from self._tokenised(batch)

    def _tokenised(self, batch: list[tuple[int, int, Document]]) -> Iterator[Piece]:
        texts = [document for _, _, document in batch if isinstance(document, str)]
        ids = iter(_token_ids(self.tokenizer, texts) if texts else [])
        for number, duplicates, document in batch:
            text = isinstance(document, str)
            tokens = np.asarray(next(ids), np.int64) if text else document
            if len(tokens):
                yield Piece(number, self._separated(tokens, text), duplicates)

    def _separated(self, tokens: NDArray[Any], text: bool) -> NDArray[Any]:
        separator = self.packing.separator
        if separator == "auto":
            separator = "eos" if text else "none"
        if self.packing.pack == "documents" or separator == "none":
            return tokens
        if separator == "eos":
            return np.concatenate([tokens, np.array([self.packing.eos])])
        return np.concatenate([np.array([self.packing.bos]), tokens])


def _after(cursor: Cursor) -> Cursor:
    return replace(cursor, document=cursor.document + 1, used=0)


def _token_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and hasattr(backend, "encode_batch_fast"):
        # What the call below does, without the characters' offsets, which take a quarter of the time.
        backend.no_truncation()
        backend.no_padding()
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
    # verbose: a document longer than the model's context is no reason for a warning; it is cut into contexts.
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
