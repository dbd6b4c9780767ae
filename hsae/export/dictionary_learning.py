"""dictionary_learning: `ae.pt`, a state dict, and `config.json`.

Its `AutoEncoder` brings decoder columns to unit norm when it is read, which would change the codes: an SAE with other
norms is written as `JumpReluAutoEncoder` with thresholds of 0, which is the same function. All but that class take the
decoder's bias from the activations. `layer` is the block whose output the residual stream is: SAELens' reader of this
format says `blocks.LAYER.hook_resid_post`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hsae.export import ExportConfig
from hsae.export._base import Exporter, Subject
from hsae.export._files import write_json
from hsae.export._hooks import block_of, residual_layer
from hsae.export._plain import Plain
from hsae.files import replacing

if TYPE_CHECKING:
    from rich.console import Console


class DictionaryLearning(Exporter):
    """A folder for `load_dictionary`."""

    load = 'load_dictionary("{folder}", device="cpu")'

    def write(self, subject: Subject, settings: ExportConfig, folder: Path, errors: Console | None) -> str:
        form, hook, store = subject.plain, subject.hook, subject.trained_on
        name, state = _state(form)
        layer = residual_layer(hook)
        config = {
            "trainer": {
                "trainer_class": None,
                "dict_class": name,
                "activation_dim": form.width,
                "dict_size": form.latents,
                "layer": block_of(hook) if layer is None else layer if layer >= 0 else None,
                "lm_name": subject.model,
                "submodule_name": hook if layer is None or layer < 0 else f"resid_post_layer_{layer}",
                **({} if form.k is None else {"k": form.k}),
            },
            "buffer": {"d_submodule": form.width, "ctx_len": None if store is None else store.manifest.context},
            "hsae": subject.provenance,
        }
        write_json(folder / "config.json", config)
        with replacing(folder / "ae.pt") as aside:
            torch.save({key: value.contiguous().clone() for key, value in state.items()}, aside)
        return ""


def _state(form: Plain) -> tuple[str, dict[str, Tensor]]:
    """The class that computes the same function, and its state."""
    linear = {"encoder.weight": form.W_enc, "decoder.weight": form.W_dec.T}
    if form.k is not None:
        own = {"b_dec": form.b_dec, "k": torch.tensor(form.k, dtype=torch.int), "threshold": torch.tensor(-1.0)}
        return "AutoEncoderTopK", linear | {"encoder.bias": form.centred_bias} | own
    if form.log_gain is not None and form.magnitude_bias is not None:
        gate = form.centred_bias
        magnitude = form.magnitude_bias + form.log_gain.exp() * gate
        own = {"gate_bias": gate, "mag_bias": magnitude, "r_mag": form.log_gain, "decoder_bias": form.b_dec}
        return "GatedAutoEncoder", linear | own
    if form.threshold is None and form.unit_rows:
        return "AutoEncoder", linear | {"encoder.bias": form.centred_bias, "bias": form.b_dec}
    threshold = torch.zeros(form.latents) if form.threshold is None else form.threshold
    weights = {"W_enc": form.W_enc.T, "b_enc": form.b_enc, "W_dec": form.W_dec, "b_dec": form.b_dec}
    return "JumpReluAutoEncoder", weights | {"threshold": threshold}
