"""Stories as tokens: the bytes of the text at the reduced sizes, a byte-level BPE such as GPT-2's at the source's."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from hsae.errors import UserError
from hsae.harvesting.text import BUNDLED, READERS, LocalFiles
from hsae.loading import cannot_load

HELD, FEWEST = 20, 40  # every 20th story is held out; fewer stories than that are no experiment
WORD = re.compile(r"[A-Za-z']+")
KNOWN = 20_000_000  # characters of the training stories whose words count as known
Rows = tuple[Int[Tensor, "row position"], Int[Tensor, "row position"]]


@dataclass(frozen=True)
class Stories:
    """A text in tokens, split by whole stories.

    Attributes:
        vocabulary: the number of tokens, of which `end` ends a story.
        encode, decode: text to tokens and back.
        train, held: the stories one after another; every 20th is held out.
        words, pairs: what occurs in the training stories.
    """

    vocabulary: int
    end: int
    encode: Callable[[str], np.ndarray]
    decode: Callable[[list[int]], str]
    train: np.ndarray
    held: np.ndarray
    words: frozenset[str]
    pairs: frozenset[tuple[str, str]]

    def batch(self, rows: int, context: int, generator: np.random.Generator) -> Rows:
        """Random stretches of the training stories: inputs, and the tokens that follow them."""
        return _rows(self.train, generator.integers(len(self.train) - context, size=rows), context)

    def validation(self, rows: int, context: int) -> Rows:
        """Evenly spaced stretches of the held-out stories."""
        return _rows(self.held, np.linspace(0, len(self.held) - context - 1, rows).astype(np.int64), context)

    def coherence(self, texts: list[str]) -> dict[str, float]:
        """The shares of words, and of pairs of words, of some texts that occur in the training stories."""
        found = [WORD.findall(text) for text in texts]
        words = [word in self.words for each in found for word in each]
        pairs = [pair in self.pairs for each in found for pair in itertools.pairwise(each)]
        return {"words": float(np.mean(words or [0])), "pairs": float(np.mean(pairs or [0]))}


def _rows(data: np.ndarray, starts: np.ndarray, context: int) -> Rows:
    taken = torch.from_numpy(data[starts[:, None] + np.arange(context + 1)].astype(np.int64))
    return taken[:, :-1], taken[:, 1:]


@lru_cache(maxsize=1)
def read(text: str, tokenizer: str, context: int) -> Stories:
    """The stories of a file.

    Args:
        text: .txt (with <|endoftext|> or blank lines between stories), .jsonl or .parquet; empty: the bundled stories.
        tokenizer: a folder, or a name on the hub, of a BPE; empty: bytes.
        context: the tokens of a row.

    Raises:
        UserError: the file or the tokeniser cannot be read, or the text is too short.
    """
    path = Path(text) if text else BUNDLED
    if not path.is_file() or path.suffix not in (".txt", ".jsonl", ".parquet"):
        wrong = f"no text of kind {path.suffix or 'unknown'} is read" if path.is_file() else "no such file"
        raise UserError(f"{text}: {wrong}; --text wants stories in a .txt, .jsonl or .parquet file")
    stories = [str(story) for story in READERS[path.suffix](path, LocalFiles((path,)))]
    if path.suffix == ".txt" and len(stories) < FEWEST:
        stories = re.split(r"\n\s*\n", "\n\n".join(stories))
    stories = [story.strip() for story in stories if story.strip()]
    if len(stories) < FEWEST:
        raise UserError(f"{path}: {len(stories)} stories, at least {FEWEST} are wanted, <|endoftext|> between them")
    vocabulary, end, encode, decode = _bpe(tokenizer) if tokenizer else _bytes("".join(stories))
    encoded = [np.append(encode(story), end) for story in stories]
    held = np.concatenate(encoded[::HELD])
    train = np.concatenate([tokens for i, tokens in enumerate(encoded) if i % HELD])
    if len(held) < 2 * context:
        raise UserError(f"{path}: too short: {len(held):,} tokens are held out, for rows of {context}")
    known = WORD.findall("\n".join(story for i, story in enumerate(stories) if i % HELD)[:KNOWN])
    pairs = frozenset(itertools.pairwise(known))
    return Stories(vocabulary, end, encode, decode, train, held, frozenset(known), pairs)


def _bytes(text: str) -> tuple[int, int, Callable[[str], np.ndarray], Callable[[list[int]], str]]:
    """The bytes that occur in a text, each a token; 0 ends a story."""
    there = np.unique(np.frombuffer(b"\0" + text.encode(), np.uint8))

    def encode(text: str) -> np.ndarray:
        data = np.frombuffer(text.encode(), np.uint8)
        return np.searchsorted(there, data[np.isin(data, there)]).astype(np.uint8)

    return len(there), 0, encode, lambda ids: there[ids].tobytes().decode(errors="replace")


def _bpe(name: str) -> tuple[int, int, Callable[[str], np.ndarray], Callable[[list[int]], str]]:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"tokeniser of {name}: {cannot_load(error)}; --tokenizer names another") from None

    def encode(text: str) -> np.ndarray:
        return np.array(tokenizer(text, add_special_tokens=False, verbose=False).input_ids, np.int32)

    return len(tokenizer), int(tokenizer.eos_token_id), encode, tokenizer.decode
