"""Text for the bundled model: reading stories, the tokeniser, token arrays, batches and the validation measure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from bundled_net import CONTEXT, END_OF_TEXT, VOCAB, end_id
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers


def read_stories(path: Path) -> list[str]:
    """The stories of a file that separates them by lines `<|endoftext|>`."""
    parts = path.read_text(encoding="utf-8").split(END_OF_TEXT)
    return [story for story in (re.sub(r"\s*\n\s*", "\n", part.strip()) for part in parts) if story]


def read_validation(path: Path) -> list[str]:
    """The stories of the validation head, which has a blank line between paragraphs and between stories alike.

    A paragraph that begins with "Once" is taken as the beginning of a story; paragraphs are joined by one line break,
    as in the training text.  The first and the last story of the file are parts of stories.
    """
    paragraphs = [part.strip() for part in re.split(r"\n\s*\n", path.read_text(encoding="utf-8")) if part.strip()]
    stories: list[list[str]] = []
    for paragraph in paragraphs:
        if not stories or paragraph.startswith("Once"):
            stories.append([])
        stories[-1].append(re.sub(r"\s*\n\s*", "\n", paragraph))
    return ["\n".join(story) for story in stories]


def train_tokenizer(stories: list[str]) -> Tokenizer:
    """A byte-level BPE of VOCAB entries, `<|endoftext|>` among them; no token is added around a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(stories, trainer)
    if tokenizer.get_vocab_size() != VOCAB:
        raise ValueError(f"the tokeniser has {tokenizer.get_vocab_size()} entries, not {VOCAB}")
    return tokenizer


class Documents:
    """Tokenised stories, each led by an end-of-text token, in one array with the starts of the stories."""

    def __init__(self, stories: list[str], tokenizer: Tokenizer) -> None:
        end = end_id(tokenizer)
        rows = []
        for i in range(0, len(stories), 1000):
            encodings = tokenizer.encode_batch_fast(stories[i : i + 1000])
            rows.extend(np.array([end, *encoding.ids], dtype=np.uint16) for encoding in encodings)
        self.tokens = np.concatenate(rows)
        self.starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])])

    def forever(self, rng: np.random.Generator) -> Iterator[torch.Tensor]:
        """Rows of CONTEXT + 1 tokens, without end: each pass packs the stories in a new order and mixes the rows."""
        while True:
            order = rng.permutation(len(self.starts) - 1)
            stream = np.concatenate([self.tokens[self.starts[i] : self.starts[i + 1]] for i in order])
            n = (len(stream) - 1) // CONTEXT
            for i in rng.permutation(n):
                yield torch.from_numpy(stream[i * CONTEXT : (i + 1) * CONTEXT + 1].astype(np.int64))


@torch.inference_mode()
def nats_per_char(
    logits: Callable[[torch.Tensor], torch.Tensor],
    documents: list[list[int]],
    end: int,
    chars: int,
    context: int = CONTEXT,
) -> tuple[float, float]:
    """Mean negative log-likelihood per character and per token of the documents' own tokens.

    The documents are packed, each led by the token `end`, and read in contexts that do not overlap; predictions of
    `end` are not counted.
    """
    stream = torch.tensor([token for document in documents for token in (end, *document)])
    total, count = 0.0, 0
    for start in range(0, len(stream) - 1, 8 * context):
        part = stream[start : start + 8 * context + 1]
        n = (len(part) - 1) // context
        pieces = [(part[: n * context].view(n, context), part[1 : n * context + 1].view(n, context))] if n else []
        if (len(part) - 1) % context:
            pieces.append((part[None, n * context : -1], part[None, n * context + 1 :]))
        for ids, targets in pieces:
            logp = torch.log_softmax(logits(ids).float(), dim=-1).gather(2, targets[..., None])[..., 0]
            counted = targets != end
            total -= float(logp[counted].double().sum())
            count += int(counted.sum())
    return total / chars, total / count
