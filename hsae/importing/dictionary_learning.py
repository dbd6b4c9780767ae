"""dictionary_learning: `ae.pt`, a state dict, and `config.json`.

The SAE is taken as the file has it. The tool's own `load_dictionary` brings an `AutoEncoder`'s decoder to unit norm,
and multiplies codes accordingly.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hsae.errors import UserError, one_line
from hsae.export._plain import Plain
from hsae.importing._base import Foreign, Reader, Tensors, read_json, table, text, uncentred, whole_number
from hsae.sae import Variant
from hsae.sae.batchtopk import BatchTopK
from hsae.sae.matryoshka import Matryoshka

Read = tuple[Plain, Variant | None]


class DictionaryLearning(Reader):
    """What `trainSAE` writes."""

    files = ("config.json", "ae.pt")

    def read(self, folder: Path) -> Foreign:
        path, config = folder / "ae.pt", read_json(folder / "config.json")
        trainer, provenance = table(config, "trainer"), table(config, "hsae")
        name = trainer.get("dict_class")
        if not isinstance(name, str) or name not in CLASSES:
            known = ", ".join(CLASSES)
            raise UserError(f"{folder / 'config.json'}: dict_class {name!r} cannot be represented; {known} can")
        width = whole_number(trainer, "activation_dim", folder / "config.json")
        latents = whole_number(trainer, "dict_size", folder / "config.json")
        tensors = Tensors(path, _state(path))
        plain, variant = CLASSES[name](tensors, width, latents)
        tensors.require_done()
        by = f"hsae {text(provenance, 'version')} for dictionary_learning" if provenance else "dictionary_learning"
        hook = text(provenance, "hook") or _hook(trainer)
        return Foreign(plain, hook, text(trainer, "lm_name"), by, variant, provenance)


def _state(path: Path) -> Mapping[str, Any]:
    """The state dict, with nothing executed: a file that holds other objects than tensors is refused.

    So is one that would unpack to more than its size; PyTorch compresses nothing, and its own way of reading files from
    before version 1.6 makes room by what they say.
    """
    try:
        with zipfile.ZipFile(path) as file:
            if sum(part.file_size for part in file.infolist()) > path.stat().st_size:
                raise ValueError("it is compressed")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that it is about to refuse
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch raises all kinds
        raise UserError(f"{path}: not a file of tensors alone, or damaged ({one_line(error, 120)})") from None
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise UserError(f"{path}: not a state dict")
    return state


def _hook(trainer: Mapping[str, Any]) -> str:
    """The hook point that a trainer names: its own name for one, or the residual stream after its layer."""
    module, layer = text(trainer, "submodule_name"), trainer.get("layer")
    if module.startswith(("blocks.", "hook_")):
        return module
    residual = not module or module.startswith("resid_post")
    return f"blocks.{layer}.hook_resid_post" if residual and isinstance(layer, int) and layer >= 0 else ""


def _linear(tensors: Tensors, width: int, latents: int, bias: str) -> tuple[Tensor, Tensor, Tensor]:
    """Encoder, decoder and its bias, of the classes whose matrices are linear layers."""
    W_dec = tensors.take("decoder.weight", width, latents).T.contiguous()
    return tensors.take("encoder.weight", latents, width), W_dec, tensors.take(bias, width)


def _matrices(tensors: Tensors, width: int, latents: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same of the classes that have plain matrices."""
    W_enc = tensors.take("W_enc", width, latents).T.contiguous()
    return W_enc, tensors.take("W_dec", latents, width), tensors.take("b_dec", width)


def _standard(tensors: Tensors, width: int, latents: int) -> Read:
    W_enc, W_dec, b_dec = _linear(tensors, width, latents, "bias")
    b_enc = uncentred(tensors.take("encoder.bias", latents), W_enc, b_dec)
    return Plain("relu", W_enc, b_enc, W_dec, b_dec), None


def _april(tensors: Tensors, width: int, latents: int) -> Read:
    W_enc, W_dec, b_dec = _linear(tensors, width, latents, "decoder.bias")
    return Plain("relu", W_enc, tensors.take("encoder.bias", latents), W_dec, b_dec), None


def _gated(tensors: Tensors, width: int, latents: int) -> Read:
    W_enc, W_dec, b_dec = _linear(tensors, width, latents, "decoder_bias")
    gate, gain = tensors.take("gate_bias", latents), tensors.take("r_mag", latents)
    magnitude, b_enc = tensors.take("mag_bias", latents) - gain.exp() * gate, uncentred(gate, W_enc, b_dec)
    return Plain("gated", W_enc, b_enc, W_dec, b_dec, log_gain=gain, magnitude_bias=magnitude), None


def _topk(tensors: Tensors, width: int, latents: int) -> Read:
    W_enc, W_dec, b_dec = _linear(tensors, width, latents, "b_dec")
    b_enc = uncentred(tensors.take("encoder.bias", latents), W_enc, b_dec)
    tensors.drop("threshold")  # its encoder does not look at it unless told to
    return Plain("topk", W_enc, b_enc, W_dec, b_dec, k=_k(tensors)), None


def _batchtopk(tensors: Tensors, width: int, latents: int) -> Read:
    W_enc, W_dec, b_dec = _linear(tensors, width, latents, "b_dec")
    b_enc = uncentred(tensors.take("encoder.bias", latents), W_enc, b_dec)
    threshold = tensors.take("threshold").clamp(min=0).expand(latents)
    return Plain("jumprelu", W_enc, b_enc, W_dec, b_dec, threshold=threshold), BatchTopK(k=float(_k(tensors)))


def _matryoshka(tensors: Tensors, width: int, latents: int) -> Read:
    W_enc, W_dec, b_dec = _matrices(tensors, width, latents)
    b_enc = uncentred(tensors.take("b_enc", latents), W_enc, b_dec)
    threshold = tensors.take("threshold").clamp(min=0).expand(latents)
    groups = tensors.drop("group_sizes")
    ends = groups.cumsum(0).tolist() if isinstance(groups, Tensor) and groups.ndim == 1 else []
    try:
        variant = Matryoshka(k=float(_k(tensors)), shares=tuple(end / latents for end in ends))
    except ValueError:
        raise UserError(f"{tensors.path}: group_sizes do not add up to the {latents} latents") from None
    return Plain("jumprelu", W_enc, b_enc, W_dec, b_dec, threshold=threshold), variant


def _jumprelu(tensors: Tensors, width: int, latents: int) -> Read:
    W_enc, W_dec, b_dec = _matrices(tensors, width, latents)
    threshold = tensors.take("threshold", latents).clamp(min=0)
    return Plain("jumprelu", W_enc, tensors.take("b_enc", latents), W_dec, b_dec, threshold=threshold), None


def _k(tensors: Tensors) -> int:
    k = int(tensors.take("k"))
    if k < 1:
        raise UserError(f"{tensors.path}: k is {k}, where 1 or above is wanted")
    return k


CLASSES: dict[str, Callable[[Tensors, int, int], Read]] = {
    "AutoEncoder": _standard,
    "AutoEncoderNew": _april,
    "AutoEncoderTopK": _topk,
    "BatchTopKSAE": _batchtopk,
    "MatryoshkaBatchTopKSAE": _matryoshka,
    "JumpReluAutoEncoder": _jumprelu,
    "GatedAutoEncoder": _gated,
}
