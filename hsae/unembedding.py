"""A language model's unembedding, read without the rest of the model where its files allow it.

The logit lens (nostalgebraist, 2020) of a direction d in the residual stream: what d adds to the logits, through the
final norm's gain and the unembedding, less the mean over tokens, which the softmax does not see.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hsae.errors import UserError
from hsae.loading import load_lm, local_path

# Names of the tensors in the architectures' own files; the first that is there counts.
OUTPUT = ("lm_head.weight", "embed_out.weight")
INPUT = (
    "transformer.wte.weight",
    "wte.weight",
    "model.embed_tokens.weight",
    "embed_tokens.weight",
    "gpt_neox.embed_in.weight",
    "model.decoder.embed_tokens.weight",
)
NORM = (
    "transformer.ln_f.weight",
    "ln_f.weight",
    "model.norm.weight",
    "norm.weight",
    "gpt_neox.final_layer_norm.weight",
    "model.decoder.final_layer_norm.weight",
)
# Architectures whose norm multiplies by one plus the weight that is stored.
ONE_PLUS = ("gemma",)


@dataclass(frozen=True)
class Unembedding:
    """What turns the residual stream into logits.

    Attributes:
        W: [token, width]; the final norm's gain is in it.
        centred: the final norm takes off the mean over dimensions (LayerNorm; RMSNorm does not).
    """

    W: Float[Tensor, "token width"]
    centred: bool

    def logits(self, directions: Float[Tensor, "row width"]) -> Float[Tensor, "row token"]:
        """What each direction adds to the logits, less the mean over tokens."""
        if self.centred:
            directions = directions - directions.mean(1, keepdim=True)
        logits = directions @ self.W.T
        return logits - logits.mean(1, keepdim=True)


def read_unembedding(name: str, revision: str = "") -> Unembedding:
    """The unembedding of a model.

    Args:
        name: as for `load_lm`.
        revision: as for `load_lm`.

    Raises:
        UserError: the model is not there, or the hub cannot be reached.
    """
    folder = local_path(name) or _cached(name, revision)
    found = _from_files(folder) if folder is not None and folder.is_dir() else None
    return found or _from_model(load_lm(name, "cpu", revision).bridge.original_model)


def _cached(name: str, revision: str) -> Path | None:
    """The folder of a hub model that is in the cache already."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(name, "config.json", revision=revision or None)
    return Path(path).parent if isinstance(path, str) else None


def _from_files(folder: Path) -> Unembedding | None:
    """From a folder's safetensors; None where they are not laid out as known."""
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tensors: dict[str, Tensor] = {}
        for path in folder.glob("*.safetensors"):
            with safe_open(path, framework="pt") as file:
                wanted = {*OUTPUT, *INPUT, *NORM, *(n.removesuffix("weight") + "bias" for n in NORM)}
                tensors |= {key: file.get_tensor(key) for key in file.keys() if key in wanted}  # noqa: SIM118
    except (OSError, ValueError, RecursionError, SafetensorError):
        return None
    if not isinstance(settings, dict):
        return None
    tied = settings.get("tie_word_embeddings", True)
    W = _first(tensors, OUTPUT if not tied else (*OUTPUT, *INPUT))
    norm = next((name for name in NORM if name in tensors), None)
    if W is None or norm is None or str(settings.get("model_type", "")).startswith(ONE_PLUS):
        return None
    if W.ndim != 2 or tensors[norm].shape != W.shape[1:]:
        return None
    return Unembedding(W.float() * tensors[norm].float(), norm.removesuffix("weight") + "bias" in tensors)


def _from_model(model: Any) -> Unembedding:
    W = model.get_output_embeddings().weight.detach().float().cpu()
    # The bridge's wrappers stand in the names of what it wraps.
    named = {name.replace("._original_component", ""): value for name, value in model.named_parameters()}
    gain = _first(named, NORM)
    if gain is None or len(gain) != W.shape[1]:
        raise UserError("the final norm of the model is not one that is known")
    gain = gain.detach().float().cpu()
    if str(model.config.model_type).startswith(ONE_PLUS):
        gain = 1 + gain
    return Unembedding(W * gain, any(name.removesuffix("weight") + "bias" in named for name in NORM))


def _first(tensors: dict[str, Tensor], names: Iterable[str]) -> Tensor | None:
    return next((tensors[name] for name in names if name in tensors), None)
