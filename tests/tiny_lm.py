"""A language model small enough to be made anew for the tests: TinyStories-1M's architecture with random weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hsae.harvesting.config import HarvestConfig

STORY = "Once upon a time there was a little dog named Tom. He liked to run and play. "
WORDS = ("sun", "dog", "cat", "tree", "big", "red", "happy", "ran", "sat", "saw", "and", "the", "a", "he", "she")


def make_text(documents: int, words: int = 40) -> list[str]:
    """Different short documents, always the same ones."""
    state, made = 1, []
    for _ in range(documents):
        picked = []
        for _ in range(words):
            state = (state * 1103515245 + 12345) % 2**31
            picked.append(WORDS[(state >> 16) % len(WORDS)])
        made.append(" ".join(picked) + ".")
    return made


def save_tokenizer(folder: Path) -> None:
    """A byte-level BPE with one special token, as GPT-2's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([STORY, *make_text(20)], trainer)
    end = "<|endoftext|>"
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end)
    fast.save_pretrained(folder)


def save_model(folder: Path, **changes: int) -> None:
    """A GPT-Neo in the hub's layout: 4 layers, width 16, global and local attention in turn."""
    import torch
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_heads": 4,
        "intermediate_size": 32,
        "vocab_size": 300,
        "window_size": 8,
        "max_position_embeddings": 64,
        "num_layers": 4,
    } | changes
    attention = [[["global", "local"], sizes["num_layers"] // 2]]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPTNeoForCausalLM(GPTNeoConfig(attention_types=attention, **sizes))
    model.save_pretrained(folder)


def make_model(folder: Path, **changes: int) -> Path:
    """The small model with its tokeniser."""
    save_model(folder, **changes)
    save_tokenizer(folder)
    return folder


def harvest_into(cache: str, config: HarvestConfig) -> None:
    """Harvest under a cache folder, silently: the work of a process of its own."""
    import torch
    from rich.console import Console

    from hsae.harvesting import harvest

    torch.set_num_threads(1)
    os.environ["HSAE_CACHE"] = cache
    harvest(config, Console(quiet=True))
