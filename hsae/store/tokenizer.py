"""The tokeniser that made a store's tokens, from the store itself. Read without PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hsae.errors import UserError, one_line
from hsae.files import own
from hsae.store.manifest import Manifest

FOLDER = "tokenizer"
MEND = "`hsae repair` writes it again"


def check_tokenizer(folder: Path, manifest: Manifest) -> None:
    """Hold the tokeniser's files against the manifest of their store, where that names them (older ones do not).

    Raises:
        UserError: one is missing, damaged, or not of the store.
    """
    named = [name for name in manifest.files if name.startswith(f"{FOLDER}/")]
    for name in named:
        manifest.files[name].check(folder / name, folder, "the manifest", MEND)
    for path in (folder / FOLDER).rglob("[!.]*"):
        if path.is_dir() and not path.is_symlink():
            continue
        own(path, folder)
        if named and path.relative_to(folder).as_posix() not in named:
            raise UserError(f"{path}: not of this store (the manifest does not name it); delete it")


def read_tokenizer(folder: Path, manifest: Manifest) -> Any:
    """The tokeniser of a store's folder: of `tokenizers`, else of transformers; None if the text came as bare ids.

    Raises:
        UserError: it is damaged.
    """
    check_tokenizer(folder, manifest)
    path = folder / FOLDER / "tokenizer.json"
    try:
        if path.exists():
            from tokenizers import Tokenizer

            return Tokenizer.from_file(str(path))
        if path.parent.is_dir():
            from transformers import AutoTokenizer

            return AutoTokenizer.from_pretrained(path.parent, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the libraries raise all kinds
        raise UserError(f"{path.parent}: no tokeniser can be read there ({one_line(error, 100)}); {MEND}") from None
    return None
