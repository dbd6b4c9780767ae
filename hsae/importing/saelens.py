"""SAELens: `cfg.json` and `sae_weights.safetensors`, of version 6 and of older ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hsae.errors import UserError
from hsae.export._plain import Plain
from hsae.importing._base import Foreign, Reader, Tensors, read_json, read_tensors, table, text, uncentred, whole_number

ARCHITECTURES = ("standard", "topk", "jumprelu", "gated")


class SAELens(Reader):
    """What `SAE.save_model` and `save_inference_model` write."""

    files = ("cfg.json", "sae_weights.safetensors")

    def read(self, folder: Path) -> Foreign:
        path = folder / "cfg.json"
        cfg, metadata = _modern(read_json(path))
        _require_said(cfg, metadata, path)
        tensors = Tensors(folder / "sae_weights.safetensors", read_tensors(folder / "sae_weights.safetensors"))
        plain = _plain(cfg, tensors, path)
        tensors.require_done()
        version = text(metadata, "sae_lens_version")
        provenance = table(metadata, "hsae")
        by = f"hsae {text(provenance, 'version')} for SAELens" if provenance else f"SAELens {version}".strip()
        return Foreign(plain, text(metadata, "hook_name"), text(metadata, "model_name"), by, provenance=provenance)


def _modern(cfg: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A configuration as version 6 has it, and its metadata; before that all keys were in one table."""
    if isinstance(cfg.get("metadata"), dict):
        return cfg, cfg["metadata"]
    names = {
        "hook_point": "hook_name",
        "hook_point_head_index": "hook_head_index",
        "activation_fn_str": "activation_fn",
    }
    old = {names.get(key, key): value for key, value in cfg.items()}
    old.setdefault("architecture", "standard")
    if old.get("activation_fn") == "topk":
        old |= {"architecture": "topk", "k": table(old, "activation_fn_kwargs").get("k")}
    return old, old


def _require_said(cfg: Mapping[str, Any], metadata: Mapping[str, Any], path: Path) -> None:
    """Refuse what an SAE of hsae does not compute."""
    architecture = cfg.get("architecture")
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"{path}: architecture {architecture!r} cannot be represented; {known} can")
    activation = cfg.get("activation_fn", "relu")
    if activation not in ("relu", "topk"):
        raise UserError(f"{path}: activation function {activation!r} cannot be represented; relu and topk can")
    normalise = cfg.get("normalize_activations", "none")
    if normalise not in ("none", None, False):
        raise UserError(
            f"{path}: activations are normalised ({normalise}) by numbers that the folder does not hold; fold them "
            "into the weights with SAELens (fold_activation_norm_scaling_factor), save it again, and import that"
        )
    if cfg.get("finetuning_scaling_factor"):
        raise UserError(f"{path}: finetuning_scaling_factor cannot be represented")
    if metadata.get("hook_head_index") is not None:
        raise UserError(f"{path}: is of one head of {metadata.get('hook_name')}, and stores hold all heads of a layer")


def _plain(cfg: Mapping[str, Any], tensors: Tensors, path: Path) -> Plain:
    width, latents = whole_number(cfg, "d_in", path), whole_number(cfg, "d_sae", path)
    W_enc, W_dec = tensors.take("W_enc", width, latents).T.contiguous(), tensors.take("W_dec", latents, width)
    b_dec = tensors.take("b_dec", width)
    factor = tensors.drop("scaling_factor")
    if factor is not None and not torch.equal(factor.float(), torch.ones(latents)):
        raise UserError(f"{path}: the scaling_factor beside it cannot be represented")
    taken = b_dec if cfg.get("apply_b_dec_to_input", True) else torch.zeros(width)
    if cfg["architecture"] == "gated":
        gate, gain = tensors.take("b_gate", latents), tensors.take("r_mag", latents)
        magnitude = tensors.take("b_mag", latents) - gain.exp() * gate
        return Plain(
            "gated", W_enc, uncentred(gate, W_enc, taken), W_dec, b_dec, log_gain=gain, magnitude_bias=magnitude
        )
    b_enc = uncentred(tensors.take("b_enc", latents), W_enc, taken)
    if cfg["architecture"] == "topk":
        if cfg.get("rescale_acts_by_decoder_norm", False):
            norm = W_dec.norm(dim=1)
            if not (norm > 0).all():
                raise UserError(f"{path}: rescale_acts_by_decoder_norm divides by a decoder row of norm 0")
            W_enc, b_enc, W_dec = W_enc * norm[:, None], b_enc * norm, W_dec / norm[:, None]
        return Plain("topk", W_enc, b_enc, W_dec, b_dec, k=whole_number(cfg, "k", path))
    if cfg["architecture"] == "jumprelu":
        old = tensors.drop("log_threshold")
        if old is not None:
            tensors = Tensors(tensors.path, {"threshold": old.exp()})
        threshold = tensors.take("threshold", latents).clamp(min=0)
        return Plain("jumprelu", W_enc, b_enc, W_dec, b_dec, threshold=threshold)
    return Plain("relu", W_enc, b_enc, W_dec, b_dec)
