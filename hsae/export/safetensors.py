"""A format of no tool: `sae.safetensors` with one latent per row, and `config.json` that says the formula."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hsae.export import ExportConfig
from hsae.export._base import Exporter, Subject
from hsae.export._files import write_json, write_tensors

if TYPE_CHECKING:
    from rich.console import Console

FORMAT = "hsae-sae"
FORMULAS = {
    "relu": "max(u, 0)",
    "topk": "max(u, 0), for each token its k highest, else 0",
    "jumprelu": "max(u, 0) where u > threshold, else 0",
    "gated": "max(exp(log_gain) * u + magnitude_bias, 0) where u > 0, else 0",
}


class SafeTensors(Exporter):
    """A folder for anybody, and for `hsae import`."""

    load = 'safetensors.torch.load_file("{folder}/sae.safetensors")'

    def write(self, subject: Subject, settings: ExportConfig, folder: Path, errors: Console | None) -> str:
        form = subject.plain
        config = {
            "format": FORMAT,
            "activation": form.activation,
            **({} if form.k is None else {"k": form.k}),
            "formulas": {
                "u": "W_enc @ x + b_enc",
                "code": FORMULAS[form.activation],
                "reconstruction": "code @ W_dec + b_dec",
            },
            "hsae": subject.provenance,
        }
        names = ["W_enc", "b_enc", "W_dec", "b_dec", "threshold", "log_gain", "magnitude_bias"]
        write_json(folder / "config.json", config)
        write_tensors(folder / "sae.safetensors", form.tensors(names), {"format": FORMAT})
        return ""
