"""What the page shows, as plain JSON documents: a summary of all latents, and blocks of everything about some."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hsae.evidence import Index, Subject
from hsae.evidence.index import DENSE
from hsae.evidence.latent import BEFORE, TOP, Context, LatentEvidence, Logit
from hsae.inspect.page.words import Words

FORMAT = "hsae-page-1"
BLOCK = 32
"""latents in a block"""
LIST_TOKENS = 6
"""top tokens of a latent in the table"""
LIST_BEFORE, LIST_AFTER = 14, 10
"""tokens on either side of a latent's strongest peak in the table"""
LONGEST = 160
"""characters of a token that are shown"""
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


class Documents:
    """The documents of one subject.

    Args:
        subject: which SAE, and the store.
        index: its index.
        latents: those to show, in this order; None: all.
    """

    def __init__(self, subject: Subject, index: Index, latents: Sequence[int] | None = None) -> None:
        self.subject, self.index = subject, index
        self.latents = tuple(range(index.latents)) if latents is None else tuple(latents)

    @property
    def blocks(self) -> int:
        """How many blocks there are: the latents in order, `BLOCK` to each, the rest in the last."""
        return math.ceil(len(self.latents) / BLOCK)

    @cached_property
    def _words(self) -> Words:
        return Words(self.subject.tokenizer)

    def summary(self) -> dict[str, Any]:
        """What the page is about, and a table with an entry for each latent in every column.

        `columns` holds: latent, firings, mean, maximum, same (how many of its `TOP` strongest contexts peak on one
        token; 0 where it has fewer), tokens (its first, as text), context (what stands before its highest peak, the
        peak's token, and what stands behind; null where it never fires), histogram (a base-36 digit for each bin: the
        square root of its count, 35 for the highest), explanation and score (null where there is none). Means and
        maxima have four digits.
        """
        from hsae.interpret.results import read_explanations

        index, result, row = self.index, self.subject.record.result, self.subject.row
        explained = read_explanations(self.subject)
        chosen = np.asarray(self.latents, dtype=np.int64)
        explanations = [explained.get(latent) for latent in self.latents]
        metrics = ("mse", "evr", "evr_pooled", "l1", "l0", "dictionary", "dead")
        return {
            "format": FORMAT,
            "run": self.subject.record.name,
            "setup": row.setup,
            "seed": row.seed,
            "model": _model_name(result.model),
            "store": self.subject.store,
            "hook": self.subject.hook,
            "positions": self.subject.manifest.tokens,
            "rows": index.rows,
            "width": result.width,
            "dictionary": index.latents,
            "held_out": result.held_out,
            "dead_window": result.dead_window,
            "metrics": {name: _rounded(getattr(row, name), 4) for name in metrics},
            "warnings": list(self.subject.warnings),
            "no_logits": None if index.has_logits else index.facts.get("logits", ""),
            "top": TOP,
            "dense": DENSE,
            "block": BLOCK,
            "columns": {
                "latent": list(self.latents),
                "firings": index.firings[chosen].tolist(),
                "mean": [_rounded(value, 4) for value in index.mean[chosen].tolist()],
                "maximum": [_rounded(value, 4) for value in index.maximum[chosen].tolist()],
                "same": np.rint(index.selectivity[chosen] * TOP).astype(int).tolist(),
                "tokens": self._first_tokens(),
                "context": self._strongest(),
                "histogram": self._sketches(),
                "explanation": [one.text or None if one else None for one in explanations],
                "score": [_rounded(one.score, 3) if one else None for one in explanations],
            },
        }

    def _first_tokens(self) -> list[list[str]]:
        offset, ids = self.index.array("token_offset"), self.index.array("token_id")
        return [
            [self._words.one(int(token))[:LONGEST] for token in ids[first : min(first + LIST_TOKENS, last)]]
            for first, last in ((int(offset[i]), int(offset[i + 1])) for i in self.latents)
        ]

    def _strongest(self) -> list[list[str] | None]:
        offset, windows, _ = self.index.contexts("top")
        rows = [int(offset[i]) if offset[i] < offset[i + 1] else None for i in self.latents]
        near = slice(BEFORE - LIST_BEFORE, BEFORE + 1 + LIST_AFTER)
        tokens = [[token for token in windows[row, near].tolist() if token >= 0] for row in rows if row is not None]
        before = [int((windows[row, near][:LIST_BEFORE] >= 0).sum()) for row in rows if row is not None]
        found = zip(tokens, self._words.many(tokens), before, strict=True)
        parted = (_parted(pieces or [self._words.alone[t] or "" for t in ids], n) for ids, pieces, n in found)
        return [None if row is None else next(parted) for row in rows]

    def _sketches(self) -> list[str]:
        counts, widths = self.index.array("histogram"), self.index.array("bin_width")
        sketches = []
        for latent in self.latents:
            used = _bins(float(self.index.maximum[latent]), float(widths[latent]))
            sketches.append(_sketch(counts[latent, :used].tolist()))
        return sketches

    def block(self, number: int) -> dict[str, Any]:
        """Everything about the latents of one block.

        Tokens are numbers in the block's own `vocabulary`: `ids` and `text`, and `cut`, the full length of those whose
        text is cut. A token that is a part of a character has an entry for each text that it has in its contexts.
        Activations have three digits; a context's `fires` are [place, activation] where the latent is active.
        """
        vocabulary = _Vocabulary(self._words)
        found = [self.index.latent(latent) for latent in self.latents[number * BLOCK : (number + 1) * BLOCK]]
        pieces = iter(self._words.many([context.tokens for one in found for context in (*one.top, *one.samples)]))
        latents = [_latent(one, vocabulary, pieces) for one in found]
        return {"latents": latents, "vocabulary": vocabulary.document()}


class _Vocabulary(dict[int | tuple[int, str], int]):
    """Numbers a block's tokens as they come: a token by its id, or by its id and the text that it has in one place."""

    def __init__(self, words: Words) -> None:
        super().__init__()
        self._words = words

    def __missing__(self, key: int | tuple[int, str]) -> int:
        self[key] = len(self)
        return self[key]

    def one(self, token: int) -> int:
        """The number of a token by itself."""
        return self[token if self._words.alone[token] is not None else (token, self._words.one(token))]

    def document(self) -> dict[str, Any]:
        """What the numbers mean."""
        texts = [self._words.alone[key] or "" if isinstance(key, int) else key[1] for key in self]
        return {
            "ids": [key if isinstance(key, int) else key[0] for key in self],
            "text": [text[:LONGEST] for text in texts],
            "cut": {number: len(text) for number, text in enumerate(texts) if len(text) > LONGEST},
        }


def _latent(one: LatentEvidence, vocabulary: _Vocabulary, pieces: Iterator[tuple[str, ...] | None]) -> dict[str, Any]:
    def contexts(several: Iterable[Context]) -> list[dict[str, Any]]:
        return [_context(context, vocabulary, next(pieces)) for context in several]

    def logits(several: Iterable[Logit]) -> list[tuple[int, float]]:
        return [(vocabulary.one(one.token), _rounded(one.logit, 3)) for one in several]

    return {
        "latent": one.latent,
        "firings": one.firings,
        "mean": _rounded(one.mean, 4),
        "maximum": _rounded(one.maximum, 4),
        "bin": one.histogram.width,
        "histogram": list(one.histogram.counts),
        "top": contexts(one.top),
        "quantiles": [contexts(part) for part in one.quantiles()],
        "tokens": [[vocabulary.one(t.token), t.firings, _rounded(t.mass, 3), t.occurrences] for t in one.tokens],
        "doubt": _rounded(one.doubt, 3),
        "coactive": [[c.latent, _rounded(c.correlation, 3), _rounded(c.share, 3)] for c in one.coactive],
        "near": [[near.latent, _rounded(near.cosine, 3)] for near in one.near],
        "promoted": logits(one.promoted),
        "suppressed": logits(one.suppressed),
    }


def _context(context: Context, vocabulary: _Vocabulary, pieces: tuple[str, ...] | None) -> dict[str, Any]:
    keys = context.tokens if pieces is None else zip(context.tokens, pieces, strict=True)
    return {
        "sequence": context.sequence,
        "position": context.position,
        "peak": context.peak,
        "tokens": list(map(vocabulary.__getitem__, keys)),
        "fires": [[place, float(f"{value:.3g}")] for place, value in enumerate(context.activations) if value],
    }


def _model_name(model: Mapping[str, Any]) -> str:
    """A hub id, or the last part of a path: a page may be given to others, who have no use for the folders here."""
    name = str(model.get("name") or "")
    return Path(name).name if name.startswith((".", "/", "~")) else name


def _parted(pieces: Sequence[str], peak: int) -> list[str]:
    """What stands before the peak, the peak, and what stands behind it."""
    # A part of a character has no text of its own: the token that completes the character shows it.
    peak = next((i for i in range(peak, len(pieces)) if pieces[i]), peak)
    return ["".join(pieces[:peak])[-LONGEST:], pieces[peak][:LONGEST], "".join(pieces[peak + 1 :])[:LONGEST]]


def _sketch(counts: Sequence[int]) -> str:
    """A base-36 digit for each count: its square root, 35 for the highest; 0 for none only."""
    highest = max(counts, default=0)
    return "".join(_DIGITS[math.ceil(35 * math.sqrt(count / highest))] for count in counts)


def _bins(maximum: float, width: float) -> int:
    return math.ceil(maximum / width) if width else 0


def _rounded(value: float | int | None, digits: int) -> Any:
    """A number with so many significant digits; None for NaN and infinities, which JSON does not have."""
    if value is None or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.{digits}g}")
