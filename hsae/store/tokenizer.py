"""The tokeniser that made a store's tokens, from the store itself. Read without PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def read_tokenizer(folder: Path) -> Any:
    """The tokeniser of a store's folder: of `tokenizers`, else of transformers; None if the text came as bare ids."""
    path = folder / "tokenizer" / "tokenizer.json"
    if path.exists():
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(path))
    if (folder / "tokenizer").is_dir():
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    return None
