"""sparsify: `<module>/cfg.json` and `sae.safetensors`. It has TopK only (and GroupMax, which we do not train).

Its encoder takes `b_dec` from the activations, so that the encoder's bias is moved. Its reader ignores keys of the
configuration that it does not know: the provenance is in `hsae`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hsae.export import ExportConfig
from hsae.export._base import Exporter, Subject
from hsae.export._files import write_json, write_tensors
from hsae.export._hooks import module_of

if TYPE_CHECKING:
    from rich.console import Console


class Sparsify(Exporter):
    """A folder whose one subfolder, named after the model's module, is for `SparseCoder.load_from_disk`."""

    takes = ("topk",)
    load = 'SparseCoder.load_from_disk("{module}")'

    def write(self, subject: Subject, settings: ExportConfig, folder: Path, errors: Console | None) -> str:
        form, module = subject.plain, module_of(subject.hook, subject.architecture) or subject.hook
        cfg = {
            "activation": "topk",
            # Counts only where num_latents is 0; a whole number is wanted.
            "expansion_factor": max(1, round(form.latents / form.width)),
            "normalize_decoder": form.unit_rows,
            "num_latents": form.latents,
            "k": form.k,
            "multi_topk": False,
            "skip_connection": False,
            "transcode": False,
            "d_in": form.width,
            "hsae": subject.provenance,
        }
        tensors = {
            "encoder.weight": form.W_enc,
            "encoder.bias": form.centred_bias,
            "W_dec": form.W_dec,
            "b_dec": form.b_dec,
        }
        (folder / module).mkdir()
        write_json(folder / module / "cfg.json", cfg)
        write_tensors(folder / module / "sae.safetensors", tensors)
        return module
