"""SAELens 6: `cfg.json` and `sae_weights.safetensors`, matrices as [d_in, d_sae] and [d_sae, d_in].

`apply_b_dec_to_input` is false, so that the encoder's bias stays as it was trained. SAELens keeps metadata that it does
not know: the provenance is in `metadata.hsae`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hsae.export import ExportConfig
from hsae.export._base import Exporter, Subject
from hsae.export._files import write_json, write_tensors
from hsae.export._plain import Plain
from hsae.export._provenance import data_names

if TYPE_CHECKING:
    from rich.console import Console

ARCHITECTURES = {"relu": "standard", "topk": "topk", "jumprelu": "jumprelu", "gated": "gated"}
# Readers since this version keep nested metadata; without it they take the path for older files, which drops it.
SINCE = "6.0.0"


class SAELens(Exporter):
    """A folder for `SAE.load_from_disk`."""

    load = 'SAE.load_from_disk("{folder}")'

    def write(self, subject: Subject, settings: ExportConfig, folder: Path, errors: Console | None) -> str:
        form = subject.plain
        cfg: dict[str, Any] = {
            "architecture": ARCHITECTURES[form.activation],
            "d_in": form.width,
            "d_sae": form.latents,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": False,
            "normalize_activations": "none",
            "reshape_activations": "hook_z" if subject.hook.endswith("hook_z") else "none",
            "metadata": _metadata(subject),
        }
        if form.activation == "topk":
            cfg |= {"k": form.k, "rescale_acts_by_decoder_norm": False}
        write_json(folder / "cfg.json", cfg)
        write_tensors(folder / "sae_weights.safetensors", _tensors(form))
        return ""


def _tensors(form: Plain) -> dict[str, Tensor]:
    shared = {"W_enc": form.W_enc.T, "W_dec": form.W_dec, "b_dec": form.b_dec}
    if form.log_gain is not None and form.magnitude_bias is not None:
        magnitude = form.magnitude_bias + form.log_gain.exp() * form.b_enc
        return shared | {"b_gate": form.b_enc, "r_mag": form.log_gain, "b_mag": magnitude}
    return shared | {"b_enc": form.b_enc} | form.tensors(["threshold"])


def _metadata(subject: Subject) -> dict[str, Any]:
    """What the SAE is for, in SAELens' words; what the store does not tell is left out."""
    found: dict[str, Any] = {
        "sae_lens_version": SINCE,
        "sae_lens_training_version": None,
        "model_name": subject.model,
        "model_class_name": "HookedTransformer",
        "hook_name": subject.hook,
        "hook_head_index": None,
        "model_from_pretrained_kwargs": {},
        "neuronpedia_id": None,
    }
    if subject.trained_on is not None:
        manifest = subject.trained_on.manifest
        first = manifest.harvest.get("exclude_first") or None
        found |= {
            "prepend_bos": bool(manifest.harvest.get("prepend_bos", False)),
            "exclude_special_tokens": bool(manifest.harvest.get("exclude_special", False)),
            "context_size": manifest.context,
            "seqpos_slice": [first, None] if first else [None],
            "dataset_path": ", ".join(data_names(subject.trained_on)),
        }
    return found | {"hsae": subject.provenance}
