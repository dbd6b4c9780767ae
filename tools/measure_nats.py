"""Cross-entropy, in nats per character, of causal language models on the validation head of TinyStories.

    python tools/measure_nats.py --valid TINYSTORIES_VALID.txt hsae/assets/bundled TEACHER_FOLDER

The stories are packed with each model's begin-of-text token (for the bundled model this is its end-of-text token)
before every story and read in contexts of 512 tokens that do not overlap; the sum of the negative log-likelihoods of
the text's tokens is divided by the number of its characters, so models with different tokenisers compare.  The first
part of the file holds easier stories than the rest, so a number goes with its --stories.  A file that separates its
stories by lines `<|endoftext|>`, as the training text does, is read as such.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch
from bundled_data import nats_per_char, read_stories, read_validation
from bundled_net import END_OF_TEXT
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help="Hugging Face folders")
    parser.add_argument("--valid", type=Path, required=True)
    parser.add_argument("--stories", type=int, help="measure this many stories only")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    separated = END_OF_TEXT in args.valid.read_text(encoding="utf-8")
    stories = (read_stories if separated else read_validation)(args.valid)[: args.stories]
    chars = sum(map(len, stories))
    print(f"{len(stories)} stories, {chars} characters")
    for folder in args.models:
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        documents = tokenizer(stories, add_special_tokens=False)["input_ids"]
        bos = model.config.bos_token_id
        per_char, per_token = nats_per_char(lambda ids, model=model: model(ids).logits, documents, bos, chars)
        print(f"{folder.name}: {per_char:.4f} nats/character, {per_token:.4f} nats/token")


if __name__ == "__main__":
    main()
