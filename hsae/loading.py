"""Loading a language model: the bundled one, a folder, a .gguf file or one of the hub, by TransformerLens' bridge."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hsae import files, hub
from hsae.device import choose_device
from hsae.errors import UserError, one_line
from hsae.lm import LM

BUNDLED = Path(__file__).parent / "assets" / "bundled"
# What a model's folder holds that decides its outputs.
MODEL_FILES = (".safetensors", ".bin", ".gguf", ".json", ".txt", ".model", ".py")


def load_lm(
    name: str, device: str = "auto", revision: str = "", tokenizer: str = "", trust_remote_code: bool = False
) -> LM:
    """Load a language model in float32.

    Args:
        name: a hub id, a folder in the hub's layout, a .gguf file, or `bundled`.
        device: cuda, mps, cpu, or auto: the first of these that is there.
        revision: branch, tag or commit of a model on the hub.
        tokenizer: hub id or folder of the tokeniser; empty for the model's own.
        trust_remote_code: let the model's repository run its own code.

    Raises:
        UserError: not there, not loadable, or the hub cannot be reached.
    """
    device = str(choose_device(device))
    path = local_path(name)
    place, commit = (str(path), "") if path else _on_the_hub(name, revision)
    common: dict[str, Any] = {"revision": commit or None, "trust_remote_code": trust_remote_code}
    with _quiet():
        from transformer_lens.model_bridge import TransformerBridge

        gguf = {"gguf_file": Path(place).name} if path and path.suffix == ".gguf" else {}
        folder = str(Path(place).parent) if gguf else place
        common_tokenizer = {"trust_remote_code": trust_remote_code} if tokenizer else {**common, **gguf}
        loaded = _load_tokenizer(tokenizer or folder, tokenizer or name, **common_tokenizer)
        try:
            model = _load_gguf(folder, gguf["gguf_file"]).to(device) if gguf else None
            bridge = TransformerBridge.boot_transformers(
                place,
                device=device,
                hf_model=model,
                tokenizer=copy.deepcopy(loaded),  # the bridge adds tokens of its own to the one it is given
                **common,
            )
        except UserError:
            raise
        except Exception as error:  # transformers and TransformerLens raise whatever fits an architecture
            raise UserError(f"model {name}: {cannot_load(error)}") from error
    bridge.eval()
    return LM(bridge, loaded, name, device, commit)


def local_path(name: str) -> Path | None:
    """The folder or .gguf file that a model's name stands for; None for a hub id.

    Raises:
        UserError: it looks like a path, and nothing is there.
    """
    path = BUNDLED if name == "bundled" else Path(name)
    if path.is_dir():
        if not (path / "config.json").exists():
            raise UserError(f"model {name}: the folder has no config.json, so it is not a model in the hub's layout")
        return path
    if path.is_file():
        if path.suffix != ".gguf":
            raise UserError(f"model {name}: a file, where a folder in the hub's layout or a .gguf is wanted")
        return path
    if name == "bundled" or name.startswith((".", "/", "~")) or path.suffix == ".gguf" or name.count("/") > 1:
        raise UserError(f"model {name}: nothing there")
    return None


def files_fingerprint(name: str) -> str:
    """Changes with any file of a local model; empty for one on the hub. Quick: the model is not loaded."""
    path = local_path(name)
    if path is None:
        return ""
    there = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix in MODEL_FILES and p.is_file())
    digest = hashlib.sha256()
    for file in there:
        digest.update(f"{file.name} {files.sha256(file)}\n".encode())
    return digest.hexdigest()[:16]


def _on_the_hub(name: str, revision: str) -> tuple[str, str]:
    """Where to load a hub model from, and its commit. Without a network the cached copy is taken."""
    try:
        return name, hub.commit("model", name, revision)
    except hub.HubUnreachable as error:
        from huggingface_hub import snapshot_download

        try:
            folder = snapshot_download(name, revision=revision or None, local_files_only=True)
        except Exception:  # the hub client's errors for "not in the cache" differ between its versions
            raise UserError(
                f"{error}, and it is not in the cache; name a local folder (--model FOLDER), take --model bundled, "
                "or set HF_ENDPOINT to a mirror"
            ) from None
        return folder, Path(folder).name


def cannot_load(error: Exception) -> str:
    """Words for what transformers says of a model or a tokeniser that it does not load."""
    if "trust_remote_code" in str(error):
        return (
            "needs code from its own folder or repository, which could do anything here; read that code, and give "
            "--trust-remote-code (of harvest, evaluate, ablate, steer, serve) if you trust it"
        )
    return f"cannot be loaded: {one_line(error)}"


def _load_tokenizer(place: str, said: str, **options: Any) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(place, **options)
    except ImportError as error:
        raise _needs_gguf(error) from None
    except Exception as error:  # as for models
        raise UserError(f"tokeniser of {said}: {cannot_load(error)}; --tokenizer names another") from error


def _load_gguf(folder: str, file: str) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        # Its progress bar heeds no setting.
        with contextlib.redirect_stderr(io.StringIO()):
            return AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    except ImportError as error:
        raise _needs_gguf(error) from None


def _needs_gguf(error: ImportError) -> UserError:
    return UserError(f"a package is missing: {one_line(error)} (for .gguf files: pip install 'hsae[gguf]')")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' progress bars, warnings and log lines from the user's terminal while a model loads."""
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        if bars:
            transformers_logging.enable_progress_bar()
